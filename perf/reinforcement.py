"""Whole trainings of stable-baselines3 with torch.optim.Adam and with ours: python perf/reinforcement.py [--algorithms SAC PPO]

Small networks step thousands of times, so the optimizer is a good part of the whole. Each round trains once with each, in
turns, from one seed on one thread; compared are the whole training's time and the mean reward of ten episodes afterwards.
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


def train(name: str, maker: Any, seed: int) -> tuple[float, float]:
    """(seconds of the training, mean reward of ten episodes afterwards)."""
    import gymnasium
    import stable_baselines3
    from stable_baselines3.common.evaluation import evaluate_policy

    environment, options, steps = ALGORITHMS[name]
    policy = {"optimizer_class": maker}
    model = getattr(stable_baselines3, name)("MlpPolicy", environment, seed=seed, policy_kwargs=policy, device="cpu", **options)
    if getattr(model, "ent_coef_optimizer", None) is not None:  # SAC makes this one by itself
        model.ent_coef_optimizer = maker([model.log_ent_coef], lr=model.lr_schedule(1))
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    reward, _ = evaluate_policy(model, gymnasium.make(environment), n_eval_episodes=10)
    return seconds, float(reward)


def row(name: str, rounds: int) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in MAKERS}
    train(name, compiledopt.Adam, 1000)  # kernels and caches of the environment
    for seed in range(rounds):
        for who, maker in MAKERS.items():
            found[who].append(train(name, maker, seed))
    times = {who: [seconds for seconds, _ in of] for who, of in found.items()}
    rewards = {who: statistics.mean(reward for _, reward in of) for who, of in found.items()}
    medians = {who: statistics.median(of) for who, of in times.items()}
    least = {who: min(of) for who, of in times.items()}
    made = {"algorithm": name, "environment": ALGORITHMS[name][0], "steps": ALGORITHMS[name][2], "rounds": rounds}
    made |= {"their_s": f"{medians['torch']:.3g}", "our_s": f"{medians['ours']:.3g}"}
    made |= {"ratio": f"{medians['torch'] / medians['ours']:.2f}", "ratio_of_least": f"{least['torch'] / least['ours']:.2f}"}
    made |= {"their_reward": f"{rewards['torch']:.1f}", "our_reward": f"{rewards['ours']:.1f}"}
    print(" ".join(f"{key} {value}" for key, value in made.items()), flush=True)
    return {**made, **circumstances()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.algorithms:
        found = row(name, arguments.rounds)
        if not arguments.no_save:
            append("reinforcement.csv", [found])


if __name__ == "__main__":
    main()
