"""Losses that no installable package has, written down from the papers' formulas, independently of the crate.

Plain and slow, one function per loss, on the operations of torch; cases use them in float64.
"""

from __future__ import annotations
