"""Numbers as texts."""

from cxr_ray.report import galleries, page


def test_numbers_have_a_true_minus_sign_and_never_round_to_zero():
    assert page.number(-0.0004, sign=True) == "−4e−04"
    assert page.number(0.0, sign=True) == "0.000"
    assert page.number(0.0005, sign=True) == "+0.001"
    assert page.number(-1.5) == "−1.500"
    assert page.number(None) == page.number(float("nan")) == "–"


def test_a_value_without_an_interval_stands_alone():
    assert page.interval(0.5, None, None) == "0.500"


def test_p_values_are_never_zero():
    assert page.p_text(0.0001) == "<0.001"
    assert page.p_text(0.9999) == "1.000"


def test_the_font_of_galleries_has_every_glyph_of_a_number():
    font = galleries._font(12)
    missing = bytes(font.getmask("\uffff"))
    for sign in (*page.number(-0.5), "\N{EN DASH}", "\N{HORIZONTAL ELLIPSIS}"):
        assert bytes(font.getmask(sign)) != missing
