"""How weights travel from the learner to the engines: named tensors, buckets, checksums, staging, the receiver inside vLLM."""

SHARED_MEMORY_BACKEND = "rethinker_shm"
"""vLLM's name of the weight-transfer backend that reads staged files (weights.receiver)."""

NCCL_BACKEND = "rethinker_nccl"
"""vLLM's name of the backend that takes part in the learner's broadcast (weights.nccl_receiver)."""

WORKER_EXTENSION = "weights.receiver.WeightUpdateExtension"
"""What vLLM's workers import to have the backend; the folder that holds weights/ must be on sys.path."""
