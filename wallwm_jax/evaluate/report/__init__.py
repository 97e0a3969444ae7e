"""The report: one self-contained HTML page made from a run folder.

run_folder, arrays    read and check what a run left behind
bars, wording         judge the numbers and put them into sentences
markup, charts,       the few drawing tools: tags, SVG, inline pictures
  images
headline, examples,   one section of the page each
  closed_loop,
  timelines, training,
  packing, numbers
page                  puts the sections together and writes the file
"""

from wallwm_jax.evaluate.report.page import write_report

__all__ = ["write_report"]
