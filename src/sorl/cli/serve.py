"""`sorl serve RUN`: answer requests for actions over HTTP."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and serve."""
    tyro.cli(_serve, prog="sorl serve", args=arguments)


def _serve(
    path: tyro.conf.Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    task: int | None = None,
    seed: int | None = None,
    budgets: tuple[str, ...] | None = None,
    max_batch: int = 16,
    max_wait_ms: float = 1.0,
    max_queue: int = 256,
    max_steps: int = 32,
    max_best_of: int = 64,
    max_seconds: float = 10.0,
    token_file: Path | None = None,
) -> None:
    """Serve a trained policy over HTTP; every request chooses its own compute.

    POST /act answers, GET /docs tells how to ask. Ctrl-C or SIGTERM ends it when everything asked
    has been answered.

    Args:
        path: folder of a run or of a policy.
        host: address to listen on; other machines can reach another one than the default, so it
            needs a token. Without one clients call the server by this, localhost or 127.0.0.1, and
            a proxy before it has to pass such a name on.
        port: port to listen on; 0 takes a free one.
        task: which task's policy of a run; the lowest one without it.
        seed: which seed's policy of that task; the lowest one without it.
        budgets: budgets, steps x best-of, to compile before serving; others compile at first use.
            Without it 1x1 4x1 4x8 and the algorithm's own, if servable.
        max_batch: most observations of one request, and of several that are answered together; a
            power of two.
        max_wait_ms: how long a request waits for company.
        max_queue: most requests that wait; further ones are refused.
        max_steps: most sampling steps that a request may ask for, or a deadline may buy.
        max_best_of: most candidates, likewise.
        max_seconds: within this time every request has an answer.
        token_file: file with the token that requests have to show; without it the environment
            variable SORL_SERVE_TOKEN, if it is set.
    """
    from sorl.errors import InputError

    try:
        from sorl.deployment.serving import listener
        from sorl.deployment.serving.app import create_app
        from sorl.deployment.serving.counters import ServerMetrics
        from sorl.deployment.serving.schemas import Limits
    except ModuleNotFoundError as error:
        if str(error.name).startswith("sorl"):
            raise
        raise InputError(
            f"Serving needs {error.name}, which is not installed: install sorl[serve]."
        ) from error

    from sorl.console import show_progress
    from sorl.deployment.policy import Policy
    from sorl.deployment.serving.batching import Batcher, Offer, Plan, offers_of
    from sorl.inference import servable_budgets
    from sorl.interruption import Interruption, StoppedError
    from sorl.types import Budget

    limits = Limits(max_steps=max_steps, max_best_of=max_best_of, max_seconds=max_seconds)
    token = listener.read_token(token_file)
    wanted = None if budgets is None else [Budget.parse(text) for text in budgets]
    for budget in wanted or ():
        if budget.steps > max_steps or budget.best_of > max_best_of:
            raise InputError(
                f"--budgets {budget}: no request may ask for it, for requests end at "
                f"{max_steps}x{max_best_of}: leave it out, or raise --max-steps or --max-best-of."
            )
    policy = Policy.load(path, task=task, seed=seed)
    if wanted is None:
        own = policy.algorithm.own_budget
        wanted = [
            budget
            for budget in servable_budgets(policy.algorithm)
            if budget == own or (budget.steps <= max_steps and budget.best_of <= max_best_of)
        ]
    plans = [Plan(budget) for budget in wanted]
    offers: list[Offer] = []
    if policy.calibration is not None:
        policy.calibration.warn_elsewhere()
        offers = offers_of(policy.calibration, max_steps=max_steps, max_best_of=max_best_of)
        if not offers:
            print(
                "warning: The calibration has nothing to offer to deadlines: it has no times of "
                f"one observation, or of no budget within {max_steps}x{max_best_of}; run `sorl "
                "calibrate` anew, or raise --max-steps or --max-best-of.",
                flush=True,
            )
        plans += [offer.plan for offer in offers]
    metrics = ServerMetrics()
    batcher = Batcher(
        policy,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        offers=offers,
        on_batch=metrics.count_batch,
    )
    app = create_app(batcher, metrics, limits=limits, token=token, host=host)
    server = listener.Server(app, max_seconds=max_seconds)
    ours = listener.listen(host, port, token=token)
    interruption = Interruption(server.stop, "stopped before everything was answered.")

    def tell() -> None:
        print(
            f"Serving {policy.member} of {path}, update {policy.update:,}, on "
            f"{listener.address_of(ours)} (how to ask: /docs); Ctrl-C stops.",
            flush=True,
        )

    with ours, interruption.handled():
        print(
            f"Compiling {', '.join(dict.fromkeys(str(plan.budget) for plan in plans))} for "
            f"batches of {', '.join(map(str, batcher.sizes))}.",
            flush=True,
        )
        try:
            with interruption.skippable(), show_progress("compiling") as on_progress:
                batcher.warm_up(plans, on_progress)
        except StoppedError:
            print("Stopped before serving.", flush=True)
            return
        server.run(ours, tell)
    print("Stopped: everything that was asked has been answered.", flush=True)
