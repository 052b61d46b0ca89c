"""Whole trainings of stable-baselines3 with torch.optim.Adam and with ours: python perf/reinforcement.py [--algorithms SAC PPO]

Small networks step thousands of times, so the optimizer is a good part of the whole. Each round trains once with each, in
turns, from one seed on one thread; compared are the whole training's time, the processor's time in it (which other programs
lengthen less), and the mean reward of ten episodes afterwards.
Needs stable-baselines3 (`pip install stable-baselines3`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import append, circumstances

import compiledopt

# What is made, and trained for how many steps of its environment.
ALGORITHMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "SAC": ("Pendulum-v1", {"learning_starts": 100}, 3_000),
    "DQN": ("CartPole-v1", {"learning_starts": 200, "train_freq": 1}, 6_000),
    "PPO": ("CartPole-v1", {}, 12_288),
}
MAKERS = {"torch": torch.optim.Adam, "ours": compiledopt.Adam}


def train(name: str, maker: Any, seed: int, steps: int) -> tuple[float, float, float]:
    """(seconds of the training, seconds of the processor, mean reward of ten episodes afterwards)."""
    import gymnasium
    import stable_baselines3
    from stable_baselines3.common.evaluation import evaluate_policy

    environment, options, _ = ALGORITHMS[name]
    policy = {"optimizer_class": maker}
    model = getattr(stable_baselines3, name)("MlpPolicy", environment, seed=seed, policy_kwargs=policy, device="cpu", **options)
    if getattr(model, "ent_coef_optimizer", None) is not None:  # SAC makes this one by itself
        model.ent_coef_optimizer = maker([model.log_ent_coef], lr=model.lr_schedule(1))
    start, worked = time.perf_counter(), time.process_time()
    model.learn(steps)
    seconds, processor = time.perf_counter() - start, time.process_time() - worked
    reward, _ = evaluate_policy(model, gymnasium.make(environment), n_eval_episodes=10, warn=False)
    return seconds, processor, float(reward)


def row(name: str, rounds: int, steps: int) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float, float]]] = {who: [] for who in MAKERS}
    for maker in MAKERS.values():  # kernels, and what else is made once
        train(name, maker, 1000, min(steps, 300))
    for seed in range(rounds):
        for who, maker in MAKERS.items():
            found[who].append(train(name, maker, seed, steps))
    made: dict[str, Any] = {"algorithm": name, "environment": ALGORITHMS[name][0], "steps": steps, "rounds": rounds}
    for index, what in enumerate(("", "processor_")):
        theirs, ours = (statistics.median(one[index] for one in of) for of in found.values())
        made |= {f"their_{what}s": f"{theirs:.3g}", f"our_{what}s": f"{ours:.3g}", f"{what}ratio": f"{theirs / ours:.2f}"}
    theirs, ours = (statistics.mean(one[2] for one in of) for of in found.values())
    made |= {"their_reward": f"{theirs:.1f}", "our_reward": f"{ours:.1f}"}
    print(" ".join(f"{key} {value}" for key, value in made.items()), flush=True)
    return {**made, **circumstances()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the environment, instead of each algorithm's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.algorithms:
        found = row(name, arguments.rounds, arguments.steps or ALGORITHMS[name][2])
        if not arguments.no_save:
            append("reinforcement.csv", [found])


if __name__ == "__main__":
    main()
