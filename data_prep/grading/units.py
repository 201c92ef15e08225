"""Units of measure: what they are called, their dimension, and their size in SI base units, as exact fractions.

The numeric grader reads the text behind a number with it. Sizes: the SI brochure, 9th edition (BIPM), and for
inches, pounds and the like the international yard and pound (1959), which are exact.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

BASE = ("m", "kg", "s", "A", "K", "mol", "cd", "rad", "°", "$", "B")
"""The dimensions; radian, degree, dollar and byte are dimensions of their own here, so that an angle is no plain
number. Degrees and radians are not converted: their ratio is no fraction."""

Dimension = tuple[int, ...]
_NO_DIMENSION: Dimension = (0,) * len(BASE)


@dataclass(frozen=True)
class Unit:
    """A unit: value_in_base = value * scale + offset."""

    name: str
    dimension: Dimension
    scale: Fraction
    offset: Fraction = Fraction(0)

    def to_base(self, value: Fraction) -> Fraction:
        """A value of this unit in SI base units."""
        return value * self.scale + self.offset


NONE = Unit("", _NO_DIMENSION, Fraction(1))

# name: aliases | size | what it is made of. "~" in front of the name: SI prefixes apply to the first alias.
_TABLE = """
~m: meter metre | 1 | m
~g: gram gramme | 1/1000 | kg
~s: sec second | 1 | s
~A: ampere amp | 1 | A
~K: kelvin | 1 | K
~mol: mole | 1 | mol
~cd: candela | 1 | cd
rad: radian | 1 | rad
°: deg degree \\circ \\degree | 1 | °
~N: newton | 1 | kg m s^-2
~J: joule | 1 | kg m^2 s^-2
~W: watt | 1 | kg m^2 s^-3
~Wh: | 3600 | kg m^2 s^-2
~Pa: pascal | 1 | kg m^-1 s^-2
~Hz: hertz | 1 | s^-1
~C: coulomb | 1 | A s
~V: volt | 1 | kg m^2 s^-3 A^-1
~Ω: ohm \\Omega | 1 | kg m^2 s^-3 A^-2
~F: farad | 1 | kg^-1 m^-2 s^4 A^2
~T: tesla | 1 | kg s^-2 A^-1
~Wb: weber | 1 | kg m^2 s^-2 A^-1
~H: henry | 1 | kg m^2 s^-2 A^-2
~L: l liter litre | 1/1000 | m^3
~eV: electronvolt | 1602176634/10000000000000000000000000000 | kg m^2 s^-2
~cal: calorie | 523/125 | kg m^2 s^-2
~bar: | 100000 | kg m^-1 s^-2
atm: atmosphere | 101325 | kg m^-1 s^-2
mmHg: torr | 101325/760 | kg m^-1 s^-2
min: minute | 60 | s
h: hr hour | 3600 | s
d: day | 86400 | s
week: wk | 604800 | s
t: tonne ton | 1000 | kg
ha: hectare | 10000 | m^2
Å: angstrom | 1/10000000000 | m
in: inch inche | 127/5000 | m
ft: foot feet | 381/1250 | m
yd: yard | 1143/1250 | m
mi: mile | 201168/125 | m
lb: lbs pound | 45359237/100000000 | kg
oz: ounce | 45359237/1600000000 | kg
mph: | 1397/3125 | m s^-1
$: \\$ dollar usd | 1 | $
¢: cent | 1/100 | $
B: byte | 1 | B
kB: | 1000 | B
MB: | 1000000 | B
GB: | 1000000000 | B
TB: | 1000000000000 | B
bit: | 1/8 | B
""".strip()

_PREFIXES = {
    "p": -12, "n": -9, "µ": -6, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6, "G": 9, "T": 12,
}  # fmt: skip
_LONG_PREFIXES = {
    "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "hecto": 2, "kilo": 3, "mega": 6,
    "giga": 9, "tera": 12,
}  # fmt: skip

_WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mbox|rm|operatorname)\s*\{([^{}]*)\}")
_FACTOR = re.compile(r"(?P<name>\\[A-Za-z]+|\\\$|[^\W\d_]+|[$¢%°])(?:\^?\{?(?P<power>[-−]?\d)\}?)?")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@lru_cache(maxsize=4096)
def read(text: str) -> Unit | None:
    r"""A unit as people write it: `cm`, `\text{ cm}^2`, `km/h`, `kg m^2 s^-2`, `meters per second`, `\%`, `°C`.

    A slash or "per" divides by all that follows up to the next one. None for words that are no unit.
    """
    text = re.sub(r"\^ ?\{ ?([-−]?\d) ?\}", r"^\1", text)
    plain = _WRAPPER.sub(r"\1", text).replace("\\%", "%").replace("\\$", "$").translate(_SUPERSCRIPTS)
    plain = re.sub(r"\^ ?\{? ?\\circ ?\}?", "°", plain).replace("^{\\circ}", "°").strip(" .~")
    plain = re.sub(r"\\(?:[,;:! ])|~", " ", plain)
    if plain in _PLAIN:
        return _PLAIN[plain]
    top, *below = re.split(r" ?/ ?| per ", re.sub(r"\s+", " ", plain))
    dimension, scale = [0] * len(BASE), Fraction(1)
    for sign, part in [(1, top), *((-1, part) for part in below)]:
        product = _product(part)
        if product is None:
            return None
        dimension = [a + sign * b for a, b in zip(dimension, product.dimension, strict=True)]
        scale *= product.scale**sign
    return Unit(plain, tuple(dimension), scale)


def _product(text: str) -> Unit | None:
    """Factors behind each other: `kg m^2`, `N·m`, `square meter`."""
    text = re.sub(r"\bsquare[d]? (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", text)).strip(" ()")
    dimension, scale = _NO_DIMENSION, Fraction(1)
    for factor in re.split(r" ?(?:\\cdot|·|\*|⋅) ?| ", text):
        match = _FACTOR.fullmatch(factor)
        unit = _named(match["name"]) if match else None
        if match is None or unit is None:
            return None
        power = int((match["power"] or "1").replace("−", "-"))
        dimension = tuple(a + power * b for a, b in zip(dimension, unit.dimension, strict=True))
        scale *= unit.scale**power
    return Unit(text, dimension, scale)


def _named(name: str) -> Unit | None:
    """One unit by its symbol (case counts) or its name (case folded, singular or plural)."""
    symbols, names = _table()
    word = name.lower()
    return symbols.get(name) or names.get(word) or names.get(word.removesuffix("s")) or names.get(word[:-2])


@lru_cache(maxsize=1)
def _table() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Units by symbol and by name, with their prefixes."""
    symbols: dict[str, Unit] = {
        base: Unit(base, tuple(int(i == index) for i in range(len(BASE))), Fraction(1))
        for index, base in enumerate(BASE)
    }
    names: dict[str, Unit] = {}
    for line in _TABLE.splitlines():
        head, size, made_of = (part.strip() for part in line.split("|"))
        symbol, _, aliases = head.partition(":")
        unit = _made_of(symbol.lstrip("~"), Fraction(size), made_of, symbols)
        symbols[unit.name] = unit
        for alias in aliases.split():
            (symbols if len(alias) <= 2 or not alias.isalpha() else names)[alias] = unit
        if not symbol.startswith("~"):
            continue
        for prefix, power in _PREFIXES.items():
            if (prefixed := prefix + unit.name) not in symbols or prefixed == "kg":
                symbols[prefixed] = Unit(prefixed, unit.dimension, unit.scale * Fraction(10) ** power)
        for prefix, power in _LONG_PREFIXES.items():
            for alias in aliases.split():
                long = Unit(prefix + alias, unit.dimension, unit.scale * Fraction(10) ** power)
                names[prefix + alias] = long
    return symbols, names


def _made_of(name: str, size: Fraction, made_of: str, symbols: dict[str, Unit]) -> Unit:
    dimension = _NO_DIMENSION
    for factor in made_of.split():
        base, _, power = factor.partition("^")
        dimension = tuple(a + int(power or 1) * b for a, b in zip(dimension, symbols[base].dimension, strict=True))
    return Unit(name, dimension, size)


def _temperature(name: str, scale: Fraction, zero: Fraction) -> Unit:
    return Unit(name, tuple(int(base == "K") for base in BASE), scale, zero)


_CELSIUS = _temperature("°C", Fraction(1), Fraction(27315, 100))
_FAHRENHEIT = _temperature("°F", Fraction(5, 9), Fraction(45967, 180))
_PERCENT = Unit("%", _NO_DIMENSION, Fraction(1, 100))
_PLAIN = {
    **dict.fromkeys(["%", "percent", "per cent"], _PERCENT),
    **dict.fromkeys(["°C", "° C", "℃", "degrees Celsius", "degree Celsius", "celsius", "Celsius"], _CELSIUS),
    **dict.fromkeys(["°F", "° F", "℉", "degrees Fahrenheit", "degree Fahrenheit", "Fahrenheit"], _FAHRENHEIT),
}
