"""What is asked and how it is scored: prompt data, images, templates, answer extraction, grading and rewards.

Must not know Ray, vLLM, DeepSpeed or the roles.
"""
