"""The only door to vLLM: one asynchronous engine that samples, scores and takes new weights.

Importing this package does not import vLLM: the environment that vLLM reads is set when an engine starts.
"""

from actors.engine.errors import EngineError, PromptRefusedError
from actors.engine.requests import Completion
from actors.engine.rollout_engine import RolloutEngine

__all__ = ["Completion", "EngineError", "PromptRefusedError", "RolloutEngine"]
