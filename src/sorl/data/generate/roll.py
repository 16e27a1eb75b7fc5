"""One reproducible episode of any set: seeded, rolled, and retried where it is discarded."""

from __future__ import annotations

import gymnasium

from sorl.data.generate.expert.actor import Actor
from sorl.data.generate.navigate import roll_navigate_episode
from sorl.data.generate.play import roll_play_episode
from sorl.data.generate.protocols import PlayProtocol, Protocol, SoccerProtocol
from sorl.data.generate.rows import Rows
from sorl.data.generate.seeding import Split, seed_episode
from sorl.data.generate.soccer import roll_soccer_episode


def roll_episode(
    environment: gymnasium.Env,
    protocol: Protocol,
    *,
    seed: int,
    split: Split,
    episode: int,
    actor: Actor | None = None,
) -> Rows:
    """The rows of one episode: the same whatever was rolled in `environment` before."""
    attempt = 0
    while True:
        environment_seed = seed_episode(seed, split, episode, attempt)
        if isinstance(protocol, PlayProtocol):
            rows = roll_play_episode(environment, protocol, environment_seed)
        elif isinstance(protocol, SoccerProtocol):
            assert actor is not None
            rows = roll_soccer_episode(environment, protocol, environment_seed, actor)
        else:
            rows = roll_navigate_episode(environment, protocol, environment_seed, actor)
        if rows is not None:
            return rows
        attempt += 1
