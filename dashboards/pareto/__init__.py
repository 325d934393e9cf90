"""The Pareto front: accuracy against compute."""
