"""DETR as a first reading of the paper would write it, to measure this project against.

Same function, same parameters under the same names, same flags; nothing is arranged for speed: each norm is
an operation of its own, attention forms its weights, each decoder layer is matched and compared by itself
over the whole batch's cost matrix, every query's mask is drawn, pictures go through PIL and floating point,
and pycocotools evaluates. It uses libraries wherever they do the job, and nothing of `models` or `datasets`.
tests/benchmarks/test_benchmarks.py holds that it computes what this project computes.
"""
