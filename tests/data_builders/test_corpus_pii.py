"""Masking of personal data: every planted form is found, and numbers in prose stay."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders._corpus.pii import KINDS, PLACEHOLDERS, Kind, is_card, is_chinese_id, is_iban, mask

EMAILS = (
    "a@b.co", "john.doe@example.com", "JOHN+tag@Mail.Example.ORG", "first_last-x@sub.domain.co.uk",
    '"john doe"@example.com', "user@[192.168.1.10]", "müller@bücher.de", "张三@例子.中国", "mailto:bob@corp.io",
    "<ann@corp.io>", "(ann@corp.io).", "bob [at] corp [dot] io", "bob(at)corp.io", "bob at corp dot com",
    "bob AT mail DOT corp DOT com", "bob @ corp.com", "bob&#64;corp.com", "bob%40corp.com", "x.y.z@a-b-c.museum",
    "o'brien@example.ie", "bob{at}corp{dot}com", "bob@corp dot com", "bob<at>corp.org",
)  # fmt: skip
PHONES = (
    "+1 415 555 2671", "+14155552671", "+1-415-555-2671", "+1 (415) 555-2671", "(415) 555-2671", "(415)555-2671",
    "415-555-2671", "415.555.2671", "415 555 2671", "1-415-555-2671", "1 (800) 555-0199", "415-555-2671 x123",
    "415-555-2671 ext. 42", "+44 20 7946 0958", "+44 (0)20 7946 0958", "020 7946 0958", "(020) 7946 0958",
    "07700 900123", "07700 900 123", "+49 30 901820", "+49 (0) 30 901820", "030/901820-12", "030 90182012",
    "0151 23456789", "+33 1 23 45 67 89", "01 23 45 67 89", "01.23.45.67.89", "+86 138 1234 5678", "13812345678",
    "138-1234-5678", "138 1234 5678", "010-12345678", "(010) 12345678", "0755-1234567", "86-13812345678",
    "+81 3-1234-5678", "03-1234-5678", "090-1234-5678", "+91 98765 43210", "+55 11 91234-5678", "+7 495 123-45-67",
    "0044 20 7946 0958", "0412 345 678", "+61 2 9876 5432", "tel: 5551234", "Tel. 555-1234", "phone: 555 1234",
    "call 555-0123", "Call us at 555-0123", "call us now on 600 123 456", "电话：62781234", "手机13812345678",
    "电话010-62781234", "fax 5552671234", "mobile: 98765 43210", "WhatsApp: 9876543210", "tel:+14155552671",
    "+852 2345 6789", "+65 6123 4567", "415–555–2671", "415\u00a0555\u00a02671", "+1.415.555.2671", "539-3028",
)  # fmt: skip
OTHERS: dict[Kind, tuple[str, ...]] = {
    "card": (
        "4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "340000000000009", "3782 822463 10005",
        "6011000000000004", "4111 1111 1111 1111 123",
    ),
    "id": (
        "123-45-6789", "AB 12 34 56 C", "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "11010519491231002X",
        "SSN: 123456789", "passport no. X1234567",
    ),
    "ip": ("93.184.216.34", "8.8.4.40", "2606:2800:220:1:248:1893:25c8:1946", "2001:4860:4860::8888"),
}  # fmt: skip
PROSE = (
    "1990-1995", "1,234,567 people", "Between 1914-1918", "10:30-11:45 on 01.02.2003 10:30", "2003-01-02 12:30:45",
    "version 1.2.3.4", "section 4.2.1.3", "3.14159265358979", "600 123 456 people", "$1,234,567,890",
    "ISBN 978-0-306-40615-7", "12345-6789", "0.000123456", "5 + 1234567890", "1 2 3 4 5 6 7 8 9 10", "850-1066",
    "call 1990-1995", "192.168.0.1", "std::vector", "12:30:45:11", "card 4111 1111 1111 1112", "2001 2002 2003 2004",
    "(2001) 234-567", "1234567890123", "look at the dot on it", "@foo", "3-0 2-1 10-9", "20180904-123456", "5.5-6.0",
    "doi 10.1111/1365-2664.12646", "121/2473 (4.9%)", "100 000 people", "1 in 7,600,000,000", "ratio 03:04:05",
)  # fmt: skip


@pytest.mark.parametrize("form", EMAILS)
def test_every_form_of_an_address_is_masked(form: str) -> None:
    text, counts = mask(f"Write to {form} for more.")
    assert counts == {"email": 1}
    assert re.sub(r"\W+", " ", text.replace("mailto", "")) == "Write to EMAIL for more "


@pytest.mark.parametrize("form", PHONES)
def test_every_form_of_a_phone_number_is_masked(form: str) -> None:
    text, counts = mask(f"You may reach {form} today.")
    assert counts == {"phone": 1} and "<PHONE>" in text
    assert not re.search(r"\d", text)


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, forms in OTHERS.items() for form in forms])
def test_cards_identity_numbers_and_addresses_are_masked(kind: Kind, form: str) -> None:
    text, counts = mask(f"it says {form} now")
    assert counts == {kind: 1} and PLACEHOLDERS[kind] in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("请发邮件到zhangsan@example.com联系我们，或写信。", "请发邮件到<EMAIL>联系我们，或写信。"),
        ("很" * 70 + "a_b@x.com.cn。", "很" * 70 + "<EMAIL>。"),
        ("邮箱zhangsan@例子.中国。", "邮箱<EMAIL>。"),
        ("写给 bob at corp dot com谢谢", "写给 <EMAIL>谢谢"),
        ("メールはabc@example.comまで。", "メールは<EMAIL>まで。"),
        ("电话号码62345678", "电话号码<PHONE>"),
        ("电话号码是62345678", "电话号码是<PHONE>"),
        ("电话是62345678", "电话是<PHONE>"),
        ("联系电话为62345678。", "联系电话为<PHONE>。"),
        ("客服热线是4008123456", "客服热线是<PHONE>"),
        ("微信号码是 88123456", "微信号码是 <PHONE>"),
        ("请拨+49 30 901820咨询", "请拨<PHONE>咨询"),
        ("卡号4111111111111111。", "卡号<CARD>。"),
        ("地址8.8.4.40访问", "地址<IP_ADDRESS>访问"),
        ("我的SSN是123456789号", "我的SSN是<ID_NUMBER>号"),
        ("见第234-2345页，共539-3028人，固件版本1.20.3.14", "见第234-2345页，共539-3028人，固件版本1.20.3.14"),
        ("2003年有12345678人，电话是1990-1995年装的", "2003年有12345678人，电话是1990-1995年装的"),
    ],
)
def test_text_without_spaces_is_a_border_and_stays(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@settings(deadline=None)
@given(st.text(alphabet="的一是我们联系请发到。，", max_size=80), st.sampled_from(["a@b.co", "62345678"]))
def test_no_chinese_text_hides_a_form_or_is_lost_with_it(around: str, form: str) -> None:
    before = f"{around}电话是"
    assert re.fullmatch(f"{before}<(EMAIL|PHONE)>{around}", mask(f"{before}{form}{around}")[0])


@pytest.mark.parametrize("form", PROSE)
def test_numbers_of_prose_stay(form: str) -> None:
    assert mask(f"see {form} now") == (f"see {form} now", {})


def test_only_what_is_asked_for_is_masked() -> None:
    text = "Ann, ann@corp.io, (415) 555-2671, 93.184.216.34"
    assert mask(text, ["ip"]) == ("Ann, ann@corp.io, (415) 555-2671, <IP_ADDRESS>", {"ip": 1})
    assert mask(text, KINDS)[0] == "Ann, <EMAIL>, <PHONE>, <IP_ADDRESS>"


def test_check_digits() -> None:
    """Published test numbers, and each with one digit changed."""
    assert is_card("4012888888881881") and not is_card("4012888888881882")
    assert is_iban("GB33BUKB20201555555555") and not is_iban("GB33BUKB20201555555556")
    assert is_chinese_id("11010519491231002X") and not is_chinese_id("110105194912310021")


@given(st.text(alphabet="0123456789 .-+()@abtel:", max_size=60), st.sampled_from(PHONES[:11]))
def test_whatever_stands_before_on_another_line_hides_no_number(before: str, form: str) -> None:
    assert form not in mask(f"{before}\nRing {form}, please.")[0]


def test_false_alarms_in_real_texts(shared_data: Path) -> None:
    """Three novels have no phone numbers or addresses, so whatever is found is wrong."""
    for name in ("gutenberg_sherlock.txt", "gutenberg_alice.txt", "gutenberg_pride.txt"):
        _, counts = mask((shared_data / "text" / name).read_text(encoding="utf-8"))
        assert not counts, name
    pages = [json.loads(line)["text"] for line in (shared_data / "text" / "c4_demo.jsonl").open(encoding="utf-8")]
    assert not any("@" in re.sub(r"\s@|@\s|@\W", "", mask(page)[0]) for page in pages)
