"""R's serialization is read and written to the byte, and damage is only ever a ValuesError.

The streams here were written by R 4.2; no R is needed.
"""

import base64
import contextlib
import functools
import mmap
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from remoter import _rvalues, _values
from remoter._rvalues import compact
from remoter._rvalues import stream as _stream
from remoter._rvalues import texts as _texts
from remoter._rvalues.stream import NOTHING, Node, dump, make, parse
from remoter._rvalues.texts import Records, Texts, encode_text, encode_texts
from remoter._values import ValuesError

STREAMS = {
    "frame": (
        "c-n1J%}&EG3^r{CYo$(;cn-#uTc-(-IDrI6Ttl0RN?kjpDSwyk33v!@JO^*UlkB()8+KYtO_`-8Uq0LM7rV2-1pv"
        "qK00u4$5Z~Wjo}3*cJH*2XKMMFf!Ufh#Ft*`63S0j{L#zk~J&u;pwK<21dd=Af4-Rq9<+IGIF?m{+ypIe-H=cyXx"
        "u{Hd_mWh^x>Q?4<5mXezxufB(EL?X;rnaUs<LepHLu+)sp8IQu3}B(y1Bl+dWbdGG)LW+r{Bv$cI8p8E^1XS<mpV"
        "RJS#}0CE?>|YBzcvbtUjcNWr<#@?Sp2+xgyfUp@^s$<kD3bJ<s27n!!2O5{^nt7_XD8953umnM4HX>`IMV~{gQ8B"
        "`2R6X^koc;mNK3sLOT9hfjJCaDs(avH5FUnWLR*iMW7vtOJy3I7991y-y"
    ),
    "frame_xdr": (
        "c-nnZOHRWu5S=;+`ADshI0t3Rt`!0#Rv-aVw<fVgq%^4<hu@|>0f*?0b8rJr(j^-x<2Zwe5m-w6X6DVz^VqWl06g"
        "#+11~@b!S&VY{vrDI(1`FG8Nza7V&QuE4(*zBJFa0{0AR4Pw!w+xGp5U9fL)CZKE$~16yi=4HKN@%YQ2LS0^H#TX"
        "~Aove;1KF)s;f@*+o3cf52b7#Raf34)*$j(NU+WcPe|zaBVxXt)nTtIKMobrJ8!Srgr7&r>Yc=yx~css)aZ>5~|2"
        "ctI|rCzCGL4-JmBM64jGHh5Tc##m{`=Q~uQdH$Td9DRn*<uIi@DwL8?{wrW&uyY<;6p9^9~H0X>#PM{zl3Dg8=h+"
        "f7Y>1_3amw)I^GOqbpD*j7(tg8Dl=`nAOnRkZQ{b7WE0j@k&!T"
    ),
    "frame_2": (
        "c-n1J%}#?r5FP=wkkB;oJ?bOSG<xu)i5IUc>_!p_&9eA+X`jG{@aA*)20lrTTx^|Ln1sb{!p=8;JKxN(j64AFya2"
        "%W;KB!(pgzS9A$*?W1-lK{)3QwB-ha{=wuGaRjjq^tZMIg>=^+GghO&^)vZ!a|>8<2_WFUs|rzq1x)HZzhh!Ux(^"
        "d8Zyr@{HJAzlYO;kK*r{Wa}bxu;FKZrcr2Jb2wx%!yogxA!*>so|PdHDh|_y(;C99?j~y(bZaBE~PH=l2|$vK7JP"
        "Npm)iT0zZT%xDrPG%g1;(KUf^gr^RNuQYK%?G3%zxjWbj-K2?pb_oJ1OqZBJ?qbGwwXAE)%1p~#PW?+X%4P@etd#"
        "l%?JjOe+VMffA7A|vIt*&0?mQUPoi~h4;+&2;b19Ur8PX"
    ),
    "sequence": (
        "c-nK~VrF1qU}9onU|?ltU<I;6L)>&N-hl*xm=TCM8CV$jfOK+xZb4#lNqlBrNpWf+vMf+DLsDXKDoBhMDh{Im0Wn"
        "A?$O;Hhae&Yt>|r!W4FK9B4>|"
    ),
    "deferred": (
        "c-nK~VrF1qU}9onU|?ltU<I;6L)>&N-hl*xm=TCM8CV$jfpki0T53^IYD#=@Nl|8AI<hoSH$zflaVkiR7b-3Q#Q&"
        "hi@BuMM4FvqK2UA%;92T*I7$54ve3gF=Fue>=y#TtI6Fm"
    ),
    "wrapped": (
        "c-nK~VrF1qU}9onU|?ltU<I;6L)>&N-hl*xm=TCM8CZarfuX!8u^_%EH8BTS0;rE6DX};eB*qIB=L6z@Py;}0kPQ"
        "&<!5+$RfKVI`yhs)?LiGUv=xGcg"
    ),
    "latin": ("c-nK~VrF1qU}9onU|?ltU<I;6L)>&N1b_^X1g8Upep&L8lYxbS5y(vBQ~+uKGXDPq0FuTA^#"),
    "bytecode": (
        "c-oy+OK%e~5ca<EYO+n*CIullAcRDqcf>R0fYdv1$pNKd13_&Xx+w&>@QV>rdaLL%ll|PzF7~Dn>5JE%*XQw!{i5"
        "b6rCirnD)3Z5->+Z2+<EBH{5K0|bZD$9e>u+2=<l4+Ce#QG!Y-jsXsT3sjX-wF!`c=hz;}u8fKVoMu<paY41d0`8"
        "7+gSv9^I06C-qmPd(p8{G0G~7rwQeecvO5h~LB-j~j%ih&u*{$B?n^8>~GOyfshW_jPdL{3w-8+;<m(QwU9poUqZ"
        "+v1{=$mOh+<V2`AS5W@8L>$zQ4=_$x$AlDLz*PrZ2Z;6w&^a?26w;7r!D<PAk4CY&c@ml<4JR5#6MU<2VwrokI{Z"
        "kycZDXT+m?F}poTH?aO@ws(UK*Ay3@XgvWHOwMk0!1NC>?!egEIpo+m`MWDX^^H&ulup+G*N0`pu-U>i8=KnY8Vz"
        "fAtzvJrk)_?UOG7zL0+APK137j}E7U;q2{rGK-^6Qp#1mKZqk2)(*yVME7#hb$)qdods+diJ#7O8kkvVIG+XlF2H"
        "mluE-{27d>;)7uBT>Jg=oz0UnBmxa7A415Yr~`mEdV6uhY)j@W^GjaYYhFo@%(NEd%c^XYLE$J7Av-sD|0=QL~r9"
        "-MHA%9l*1Hxwj!Z35plvGtEw+rvhDaT#YSa6Mb0`Aa`(<_hIM+9qjT7FXtIL-Wx(u+d2lkz`jCr6Uf<6Z8CUnaB3"
        "!t6!9V&9AKa)zf)NnRr%u3qwcCN3x%Ncw|j<XNS{nQ6sxKgU^G5lc=bhGl$msySrBfORg2)7NNnefr8}C-Xh#4+z"
        "{Qdn>#o^hd{hiB_zI#q*e_2(x$os+NYk^Es!?rKucf)(9PKv=m2`YDG&(!OA-D76y4Q`"
    ),
    "shared": (
        "c-nK~VrF1qU}9onU|?ltU<I;6L)>&Ngn<keC<cK~K>QDgLE^GdHZlh3X9UumKph~u;vGnk0U^i-q?7Y=3lft{;xq"
        "F~ic<@bWkJ>?B^IZG#CW0NyilV-I++<@fWrYof3Szq|FAgc9|0$V>?=;qN&C-8oL)j0WDXkxY7l5Mp$R0S3nYQG{"
        "sm$H*S|K5"
    ),
    "model": (
        "c-mc1TMEK35M0xTC@O;I&~N_~K~JCuh_!-{q|jE;AJ6OsG|sjOgakITnas{^vKuEvBt%M-C6pmQ9S_U(0xT%X5d*"
        "{sCjnGiL@eW5M8qp5o<D3HIgGiPzvPaEl1(!YDu%#oRqMNwp>_gX?akv>S4Nkn{W?#JZrso&4%42WI!k`x%xU`d*"
        "|=mI&tjx5yIDjqz4XbMZMno^L{_Cv#aKwCyiHryy75)UD=xC_9%Qq=I{YEc)_=KCCK3"
    ),
    "promise": (
        "c-nK~VrF1qU}9onU|?ltU<I;6L)>&NfLt*61jPS<SQv<9p=?@XkXsmmG$#WKm@Z%i3j75!{s1u>140ty$l{Xx0wy"
        "3WfFus$=jG!v9smccC<6"
    ),
}
HEADER = b"B\n" + struct.pack("<4i", 3, 0x040202, 0x030500, 5) + b"UTF-8"


@functools.cache
def stream(name):
    return zlib.decompress(base64.b85decode(STREAMS[name]))


def memory(data):
    return memoryview(bytearray(data))


def written(node):
    return b"".join(dump(node))


def of_types(*words):
    return memory(
        HEADER + b"".join(word if isinstance(word, bytes) else struct.pack("<i", word) for word in words)
    )


def refused(data, **options):
    with pytest.raises(ValuesError) as caught:
        parse(memory(data), **options)
    return caught.value


# --- streams of R's --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frame", "sequence", "deferred", "wrapped", "shared", "model", "promise"])
def test_what_is_read_is_written_to_the_byte(name):
    assert written(parse(memory(stream(name))).root)[23:] == stream(name)[23:]


def test_bytecode_is_written_with_all_that_is_in_it():
    node = parse(memory(stream("bytecode"))).root
    assert node.type == _stream.CLOSURE
    assert node.parts[-1].type == _stream.BYTECODE
    assert len(written(node)) == len(stream("bytecode"))
    again = parse(memory(written(node))).root
    assert written(again) == written(node)


@pytest.mark.parametrize("name", ["frame_xdr", "frame_2"])
def test_the_other_forms_say_the_same(name):
    assert written(parse(memory(stream(name))).root) == written(parse(memory(stream("frame"))).root)


def test_what_is_there_twice_is_one_node():
    first, second, call, place = parse(memory(stream("shared"))).root.items
    assert first is second
    assert _stream.NAMES[call.type] == "language"
    assert place.type == _stream.GLOBAL


@pytest.mark.parametrize(
    ("name", "is_code"),
    [
        ("frame", False), ("sequence", False), ("deferred", False), ("wrapped", False), ("latin", False),
        ("bytecode", True), ("shared", True), ("model", True), ("promise", True),
    ],
)  # fmt: skip
def test_code_is_known_from_data(name, is_code):
    assert _rvalues.is_code(memory(stream(name))) is is_code


def test_a_compact_vector_of_an_unknown_kind_counts_as_code():
    data = stream("sequence").replace(b"compact_intseq", b"mmap_integer\0\0")
    assert _rvalues.is_code(memory(data))
    value = _rvalues.read(memory(data))
    assert type(value) is _rvalues.RValue


def test_each_encoding_is_decoded():
    assert parse(memory(stream("latin"))).root.data == ["\u00e9t\u00e9", "a", b"\xff\xfe"]


def test_text_in_the_encoding_of_the_session():
    def read(name, text):
        size, length = struct.pack("<i", len(name)), struct.pack("<i", len(text))
        flags = struct.pack("<iii", 16, 1, 9)
        return parse(memory(HEADER[:-9] + size + name + flags + length + text)).root.data

    assert read(b"UTF-8", "\u00e9".encode()) == ["\u00e9"]
    assert read(b"ISO-8859-1", b"\xe9") == ["\u00e9"]
    assert read(b"UTF-8", b"\xe9") == ["\udce9"]
    assert read(b"no such", b"\xe9") == ["\udce9"]
    assert encode_text("\udce9") == struct.pack("<ii", 9, 1) + b"\xe9"


@pytest.mark.parametrize(("number", "text"), [
    (1.5, "1.5"), (100000.0, "1e+05"), (123456.0, "123456"), (0.1 + 0.2, "0.3"), (1e-5, "1e-05"), (-1e300, "-1e+300"),
    (0.0001, "1e-04"), (1e15, "1e+15"), (123456.7, "123456.7"), (float("inf"), "Inf"), (float("nan"), "NaN"), (0.0, "0"),
])  # fmt: skip
def test_numbers_are_written_as_R_does(number, text):
    assert compact.format_double(number) == text


# --- where numbers are -----------------------------------------------------------------------


def test_a_large_vector_is_a_view_to_be_written_to():
    numbers = np.arange(1000.0)
    data = written(make(_stream.DOUBLE, numbers))
    place = np.empty(len(data) + 16, np.uint8)
    lead = (-place.ctypes.data) % 8 + _stream.LEAD
    view = memoryview(place)[lead : lead + len(data)]
    view[:] = data
    value = _rvalues.read(view)
    assert np.shares_memory(value, place)
    assert value.flags.aligned
    assert value.flags.writeable
    assert np.array_equal(value, numbers)


@pytest.mark.parametrize("lead", range(8))
@pytest.mark.parametrize("is_writable", [True, False])
def test_numbers_are_aligned_wherever_the_stream_stands(lead, is_writable):
    numbers = np.arange(100.0) + 1j
    data = b"\0" * lead + written(make(_stream.COMPLEX, numbers))
    view = memoryview(bytearray(data) if is_writable else data)[lead:]
    value = _rvalues.read(view)
    assert value.flags.aligned
    assert value.flags.writeable
    assert np.array_equal(value, numbers)


def test_looking_for_code_changes_nothing():
    data = memory(b"\0" * 3 + stream("frame"))[3:]
    _rvalues.is_code(data)
    assert bytes(data) == stream("frame")


def test_numbers_are_written_without_a_copy():
    numbers = np.arange(100_000.0)
    buffers, _ = _rvalues.write(numbers)
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), numbers) for buffer in buffers if buffer)


def test_a_length_beyond_31_bits_is_understood():
    assert refused(HEADER + struct.pack("<iiii", 14, -1, 1, 0)).cause == "it ends too early"
    small = HEADER + struct.pack("<iiiid", 14, -1, 0, 1, 2.5)
    assert _rvalues.read(memory(small)) == 2.5

    dumper = _stream._Dumper()
    dumper.length(1 << 31)
    assert bytes(dumper.small[-12:]) == struct.pack("<iiI", -1, 0, 1 << 31)


def test_a_vector_beyond_31_bits_is_read_and_written_where_it_is():
    size = (1 << 31) + 8
    head = HEADER + struct.pack("<iiiI", 24, -1, 0, size)
    with mmap.mmap(-1, len(head) + size) as pages:  # of which only those that are touched take memory
        pages[: len(head)] = head
        pages[-1] = 7
        data = memoryview(pages)
        root = parse(data).root
        assert (len(root.data), root.data[-1]) == (size, 7)
        buffers = dump(root)
        assert bytes(buffers[0])[-16:] == head[-16:]
        assert (len(buffers[1]), buffers[1][-1]) == (size, 7)
        del root, buffers
        data.release()


# --- texts -----------------------------------------------------------------------------------

texts = some.one_of(
    some.none(),
    some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    some.sampled_from(["\t", "123456789", "\t" * 9, "x" * 265, "\u4e2d", ""]),
    some.binary(max_size=5).map(lambda text: text.replace(b"\0", b"")),
)


@settings(max_examples=60, deadline=None)
@given(some.lists(texts, min_size=1, max_size=30), some.integers(1, 40), some.booleans())
def test_texts_are_what_they_were(few, times, is_big):
    many = few * times
    node = make(_stream.CHARACTER, many)
    data = written(node)
    if is_big:
        data = as_big(many)
    found = parse(memory(data)).root.data
    assert list(found if isinstance(found, list) else found.tolist()) == many


def as_big(many):
    words = [b"X\n", struct.pack(">4i", 3, 0, 0, 5), b"UTF-8", struct.pack(">ii", 16, len(many))]
    for text in many:
        record = encode_text(text)
        words.append(struct.pack(">ii", *struct.unpack("<ii", record[:8])) + record[8:])
    return b"".join(words)


@settings(max_examples=40, deadline=None)
@given(some.lists(texts, min_size=1, max_size=30), some.integers(2, 40))
def test_many_texts_are_written_as_one_by_one(few, times):
    many = few * times
    records = encode_texts(many)
    assert b"".join(bytes(piece) for piece in records.pieces) in (
        b"".join(map(encode_text, many)),
        b"".join(map(encode_text, many)).replace(
            struct.pack("<i", 9 | 64 << 12), struct.pack("<i", 9 | 8 << 12)
        ),
    )


def test_long_stretches_of_missing_texts_and_long_texts():
    many = ["a", *[None] * 70_000, "b" * 600_000, "", *["\u00e9"] * 70_000, None]
    found = parse(memory(written(make(_stream.CHARACTER, many)))).root.data
    assert type(found) is Texts
    assert found.tolist() == many


def test_texts_go_back_without_being_looked_at():
    data = written(make(_stream.CHARACTER, ["a", None] * 100))
    node = parse(memory(data)).root
    assert type(node.data) is Texts
    assert written(node) == data


def test_a_text_with_NUL_is_refused():
    with pytest.raises(ValuesError, match="NUL"):
        encode_text("a\0")
    with pytest.raises(ValuesError, match="NUL"):
        encode_texts(["a"] * 100 + ["b\0c"])


def test_bytes_that_only_look_like_texts_are_found_out():
    trap = (struct.pack("<ii", 9 | 64 << 12, 3) + b"abc") * 30  # what a text begins with, within a text
    record = struct.pack("<ii", 9 | 2 << 12, len(trap)) + trap
    data = HEADER + struct.pack("<ii", 16, 100) + record * 100
    assert parse(memory(data)).root.data.tolist() == [trap] * 100


# --- depth -----------------------------------------------------------------------------------


def test_any_depth_is_read_and_written():
    node = NOTHING
    for _ in range(20_000):
        node = Node(_stream.LIST, None, [node])
    again = parse(memory(written(node))).root
    assert written(again) == written(node)
    assert type(_rvalues.read(memory(written(node)))) is _rvalues.RList


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "it does not begin as R's binary serialization does"),
        (b"A\n3\n", "it does not begin as R's binary serialization does"),
        (b"\x1f\x8b\x08", "it does not begin as R's binary serialization does"),
        (b"B\n" + struct.pack("<i", 4) + b"0" * 20, "version `4` of R's serialization is not known"),
        (HEADER, "it ends too early"),
        (HEADER + struct.pack("<i", 99), "there is no type `99`"),
        (HEADER + struct.pack("<i", 255 | 1 << 8), "it refers to what is not there"),
        (HEADER + struct.pack("<i", 4 | -1 << 31), "a flag is set that there is not"),
        (HEADER + struct.pack("<ii", 13, 5) + b"0" * 8, "it ends too early"),
        (HEADER + struct.pack("<ii", 19, 1 << 30), "it ends too early"),
        (HEADER + struct.pack("<ii", 16, 1 << 30), "it ends too early"),
        (HEADER + struct.pack("<ii", 13, -5), "it ends too early"),
        (HEADER + struct.pack("<ii", 13, 0) + b"more", "there is more after its end"),
        (HEADER + struct.pack("<ii", 16, 1) + struct.pack("<ii", 10, 0), "a text is none"),
    ],
)
def test_what_is_wrong_is_said(data, cause):
    error = refused(data)
    assert (error.kind, error.cause) == ("corrupt", cause)


def test_a_sequence_that_would_not_fit_into_memory_is_refused(monkeypatch):
    data = stream("sequence").replace(struct.pack("<d", 10), struct.pack("<d", 1e9))
    monkeypatch.setattr(_values, "free_memory", lambda: 1 << 30)
    with pytest.raises(ValuesError) as caught:
        _rvalues.read(memory(data))
    assert caught.value.kind == "memory"


def test_texts_of_a_sequence_that_would_not_fit_into_memory_are_refused_before_it_is_made(monkeypatch):
    node = parse(memory(stream("deferred"))).root
    state = node.parts[1]
    state.parts[-2] = parse(memory(stream("sequence"))).root
    monkeypatch.setattr(_values, "free_memory", lambda: 1 << 30)
    assert _rvalues.read(memory(written(node)))[:2].tolist() == ["1", "2"]
    monkeypatch.setattr(compact, "importlib", None)  # by which what makes numbers is found
    data = written(node).replace(struct.pack("<d", 10), struct.pack("<d", 1e8))
    with pytest.raises(ValuesError) as caught:
        _rvalues.read(memory(data))
    assert caught.value.kind == "memory"


def test_more_parts_than_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(_values, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr(_values, "FREE_ENOUGH", 0)
    monkeypatch.setattr(_stream, "NODES_AT_ONCE", 1000)
    data = HEADER + struct.pack("<ii", 19, 100_000) + struct.pack("<ii", 13, 0) * 100_000
    monkeypatch.setattr(_stream, "NODE_COST", 1 << 20)
    assert refused(data).kind == "memory"


@settings(max_examples=400, deadline=None)
@given(some.data())
def test_damage_is_only_ever_a_values_error(data):
    damaged = bytearray(stream(data.draw(some.sampled_from(sorted(STREAMS)))))
    for _ in range(data.draw(some.integers(1, 4))):
        place = data.draw(some.integers(0, len(damaged) - 1))
        what = data.draw(
            some.sampled_from([b"\xff\xff\xff\xff", b"\xee\0\0\0", b"\x15\0\0\0", b"\0", b"\x80", b"", None])
        )
        if what is None:
            del damaged[max(place, 1) :]
        else:
            what = what or bytes([data.draw(some.integers(0, 255))])
            damaged[place : place + len(what)] = what
    form = data.draw(some.sampled_from([None, "pandas", "polars", "arrow", "numpy", "raw"]))
    with contextlib.suppress(ValuesError):
        _rvalues.is_code(memory(damaged))
    try:
        value = _rvalues.read(memory(damaged), form)
    except ValuesError:
        return
    repr(value)
    if form in (None, "raw"):
        try:
            _rvalues.write(value)
        except ValuesError as error:
            assert error.kind == "kind"


def test_records_are_counted():
    assert Records(2, [b"x"]).count == 2
    assert len(encode_texts([]).pieces) == 0
    assert _texts.find_numpy() is np
