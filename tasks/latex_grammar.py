r"""Makes math-verify's LaTeX parser fast without changing what it reads.

Its grammar (ANTLR 4) is full of decisions that need the whole context, which ANTLR computes anew each time, some 40 ms for ``\{a, b\}``.
So text is read with ANTLR's weaker prediction first, whose decisions it remembers, and with the full one only where that finds an error.
By ANTLR's documentation (PredictionMode.SLL) the weaker one "will either return a correct parse tree (i.e. the same parse tree that would
be returned with the LL prediction mode), or it will report a syntax error". Must not know answers.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def use_fast_prediction() -> None:
    """Let math-verify read LaTeX in two stages, from now on in this process; any number of calls is allowed."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended import latex2sympy2

    class InTwoStages(latex2sympy2._Latex2Sympy):
        prediction = PredictionMode.SLL

        def create_parser(self, latex_str: str) -> Any:
            parser = super().create_parser(latex_str)
            parser._interp.predictionMode = self.prediction
            return parser

        def parse(self, latex_str: str) -> Any:
            try:
                return super().parse(latex_str)
            except MemoryError:
                raise
            except Exception:  # a syntax error has no type of its own there; the second stage raises what is really wrong
                self.prediction = PredictionMode.LL
                return super().parse(latex_str)

    latex2sympy2._Latex2Sympy = InTwoStages
