"""Folded boxes and proofs as native ``<details>``: they open without a script.

A box with the class ``dropdown`` is folded in the reader's browser by a script of
sphinx-togglebutton, which stops at the first proof (it has no title) and leaves the rest of the
page unfoldable. Here the same sources give ``<details><summary>``: keyboard, find-in-page and
printing work as the browser has them.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.locale import admonitionlabels
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxTranslator
from sphinx.writers.html5 import HTML5Translator
from sphinx_exercise.nodes import solution_node

# Ids that sphinx-proof and sphinx-exercise give to every box of a page.
REPEATED_IDS = {"proof", "proof-content", "exercise-content", "solution-content"}


class TitleProofs(SphinxTransform):
    """Give ``prf:proof`` a title, in place of the word it puts before the first line."""

    default_priority = 400

    def apply(self) -> None:
        for node in list(self.document.findall(nodes.admonition)):
            if node["classes"][:1] == ["proof"]:
                self.move_word_to_title(node)

    def move_word_to_title(self, node: nodes.admonition) -> None:
        word = next(iter(node.findall(nodes.Text)), None)
        if word is None or not word.startswith("Proof."):
            return
        paragraph, rest = word.parent, word.removeprefix("Proof.").lstrip()
        if rest:
            paragraph.replace(word, nodes.Text(rest))
        else:
            paragraph.remove(word)
            if not paragraph.children:
                paragraph.parent.remove(paragraph)
        node.insert(0, nodes.title("", "Proof"))
        node["classes"].append("demonstration")  # a statement has the class "proof" as well


class DropRepeatedIds(SphinxPostTransform):
    """Drop ids that stand many times on a page; figure numbers need them until here."""

    default_priority = 400

    def run(self, **kwargs: Any) -> None:
        for node in self.document.findall(nodes.Element):
            if REPEATED_IDS.intersection(node["ids"]):
                node["ids"] = [name for name in node["ids"] if name not in REPEATED_IDS]


def is_folded(node: nodes.Element) -> bool:
    return "dropdown" in node["classes"]


def visit_box(self: SphinxTranslator, node: nodes.Element, name: str = "") -> None:
    """Open a box; ``name`` is the kind of a built-in admonition, whose title is its kind."""
    if not is_folded(node):
        HTML5Translator.visit_admonition(self, node, name)
        return
    if name:
        node.insert(0, nodes.title("", admonitionlabels[name]))
    title, *body = node.children
    self.body.append(self.starttag(node, "details", CLASS=f"admonition {name}".strip()))
    self.body.append('<summary class="admonition-title">')
    for child in title.children:  # a link inside the summary would be a control in a control
        for part in child.children if isinstance(child, nodes.reference) else [child]:
            part.walkabout(self)
    self.body.append("</summary>\n")
    for child in body:
        child.walkabout(self)
    raise nodes.SkipChildren


def depart_box(self: SphinxTranslator, node: nodes.Element) -> None:
    self.body.append("</details>\n" if is_folded(node) else "</div>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx_exercise")
    app.add_transform(TitleProofs)
    app.add_post_transform(DropRepeatedIds)
    # Node classes keep their other builders' visitors; only the HTML ones are replaced.
    for node in (nodes.admonition, solution_node):
        app.registry.add_translation_handlers(
            node, html=(visit_box, depart_box), singlehtml=(visit_box, depart_box)
        )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
