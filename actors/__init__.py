"""The rollout role: prompts in, graded trajectories with advantages out. Knows neither the learner nor replay."""
