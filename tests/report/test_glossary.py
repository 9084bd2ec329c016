"""Terms are linked where a section first uses them, and their texts cannot break the page."""

import re

from cxr_ray.report.glossary import GLOSSARY, Links, Term


def test_a_term_is_linked_once_in_a_section_and_again_in_the_next():
    links = Links()
    assert str(links.mark("The win rate is a win rate.")).count("<a ") == 1
    assert "<a " not in links.mark("Another win rate.")
    links.begin()
    assert "<a " in links.mark("Another win rate.")


def test_the_longest_form_is_linked_and_parts_of_words_are_not():
    linked = re.findall(r">([^<]+)</a>", str(Links().mark("hardest strong control, controls, uncontrolled, pre-drop")))
    assert linked == ["hardest strong control", "controls"]


def test_texts_are_escaped_on_both_sides():
    links = Links([Term("odds", 'a "share" < 1', ("odds",))])
    assert str(links.mark("<b> odds")) == (
        '&lt;b&gt; <a class="term" href="#term-odds" data-tip="odds: a &#34;share&#34; &lt; 1">odds</a>'
    )


def test_no_two_terms_share_a_name_a_place_or_a_form():
    forms = [form for term in GLOSSARY for form in term.forms]
    assert len(set(forms)) == len(forms)
    assert len({term.anchor for term in GLOSSARY}) == len(GLOSSARY)
