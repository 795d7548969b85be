"""What README.md says of the paper's tables is what stands on record."""

from deepl0_kernels._files import filled
from deepl0_kernels.paper.pages import readme


def test_the_readme_is_drawn_from_the_records():
    text = readme.PAGE.read_text()
    assert filled(text, readme.parts()) == text
