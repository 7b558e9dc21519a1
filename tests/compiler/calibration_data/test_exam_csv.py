"""C-Eval's rows as texts."""

import zipfile
from pathlib import Path

import pytest

from compiler.calibration_data.exam_csv import texts_of_ceval
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

HEADER = "id,question,A,B,C,D,answer,explanation\n"
ROW = '0,"中国的首都, ""今"" 是____。",上海,北京,广州,深圳,B,\n'


def archive(folder: Path, **members: str | bytes) -> Path:
    path = folder / "ceval-exam.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in members.items():
            packed.writestr(f"{name}.csv", text)
    return path


def texts(path: Path) -> list[str]:
    return list(texts_of_ceval(path, ReadLimits()))


def test_a_row_is_question_and_choices(tmp_path: Path):
    unanswered = 'id,question,A,B,C,D\r\n5,"two\r\nlines", a ,b,c,d\r\n\r\n'
    path = archive(tmp_path, val="\ufeff" + HEADER + ROW, test=unanswered)
    assert texts(path) == [
        "two\r\nlines\nA. a\nB. b\nC. c\nD. d\n",
        '中国的首都, "今" 是____。\nA. 上海\nB. 北京\nC. 广州\nD. 深圳\n',
    ]


def test_columns_are_found_by_name(tmp_path: Path):
    path = archive(tmp_path, a="D,C,B,A, question \n4,3,2,1,q\n")
    assert texts(path) == ["q\nA. 1\nB. 2\nC. 3\nD. 4\n"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (
            "id,prompt,A,B,C\n",
            "there is no column question, D (there are: id, prompt, A, B, C)",
            ":1",
        ),
        ("", "there is no column question, A, B, C, D (there are: none)", ""),
        (HEADER + ROW + "1,a comma, here,A,B,C,D,A,\n", "the row has 9 fields, its header 8", ":3"),
        (HEADER + "\n1,q\n", "the row has 2 fields, its header 8", ":3"),
        (HEADER + '1,"open,a,b,c,d,A,\n', "not CSV: unexpected end of data", ":2"),
        (HEADER + '1,"a" b,a,b,c,d,A,\n', "not CSV: ',' expected after '\"'", ":2"),
        (HEADER + "1," + "q" * 200_000, "not CSV: field larger than field limit (131072)", ":2"),
        (HEADER.encode() + "题".encode("gb18030"), "not UTF-8 at byte 39", ":2"),
        (HEADER + "1,q\0", "not text: byte 42 is NUL", ":2"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, text: str | bytes, message: str, line: str):
    path = archive(tmp_path, a=text)
    with pytest.raises(DatasetError) as caught:
        texts(path)
    assert caught.value.message == message
    assert caught.value.where == f"{path}: a.csv{line}"
    assert caught.value.hint
