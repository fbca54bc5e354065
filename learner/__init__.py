"""The learner role: policy model, DeepSpeed engine, update step, rank group and its Ray shell."""
