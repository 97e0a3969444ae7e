"""WALL-WM in JAX: a World Action Model that learns from semantic events.

Data walks one way, and each room of the package is one step of it:

    episodes -> events -> input -> models -> flow -> optim -> train -> rollout -> evaluate
"""

__version__ = "0.1.0"
