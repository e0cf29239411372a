"""Words that a full stop follows without ending the sentence, in the languages of the house: lower case, no last stop.

All languages in one: which one a text is in is not known when its first sentence has to go out, and few words clash.
"""

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALWAYS: Final = _words(
    "dr dra prof profa mr mrs ms mx st gen capt lt sgt sen gov rev hon mt vs cf viz e.g eg i.e approx"
    " hr fr frl bzw ca vgl evtl ggf inkl exkl zzgl bspw bzgl sog z.b d.h u.a i.d.r s.o s.u m.e nr tel geb gest mio mrd"
    " mme mlle mgr fam depto p.ex env av sr sra srta dña ud uds vd vds pág págs aprox p.ej ej ee sto sta"
    " sig dott dhr mevr bijv d.w.z o.a m.b.t"
    " z.t z.zt d.r o.g u.u ing lic arq dipl.-ing h.c dr.med dr.rer rer.nat dr.jur dr.phil dr.ing ungef mult"
)
"""The sentence goes on whatever comes: Dr. Smith, z. B. Milch."""

BEFORE_NUMBER: Final = _words(
    "no nos art fig figs p pp vol ch chap sec sect kap abs abb s cap núm num tab eq ver v ext apt op str min max bd"
    " tél tel máx mín abschn bsp std ft mts vols aufl zz seg art"
    " jan feb febr mar mär apr jun jul aug sep sept oct okt nov dec dez janv févr juil déc ene abr ago dic avr"
)
"""It goes on when a number comes: No. 5 and Jan. 3, but not "The answer is no. Then"."""

DAYS_BEFORE_NUMBER: Final = _words("lun mié jue ven sam sáb dom thu thur thurs tue tues fri")
CAPITAL_DAYS: Final = frozenset(["Mon", "Wed", "Sat", "Sun", "Mo", "Di", "Mi", "Do", "Fr", "Sa", "So"])
"""Days of the week that are other words with a small letter: Sa. 10–14 Uhr, Sat. 5 Jan."""
SHORT_MONTHS: Final = _words("jan feb febr mar mär apr jun jul aug sep sept oct okt nov dec dez ene abr ago dic avr")

PARTS: Final = _words("vol fig figs abb abschn app ch chap kap sec sect tab bd")
"""What a number or letter names: Vol. II, Fig. A."""

UNITS: Final = _words("oz lb lbs ft pt qt tsp tbsp el tl std pkg msp tbs")
"""It goes on after a number unless the next word begins many sentences: 8 oz. Philadelphia."""

TITLES: Final = frozenset(["MM", "Col", "Rep", "Ft", "Lic", "Ing", "Hon", "Insp", "Cmdr", "Cpl", "Pvt", "Supt", "Pres"])
"""It goes on before a name; with a small letter they are other words."""

OFTEN_LAST: Final = _words(
    "etc usw usf ecc enz inc ltd co corp jr a.m p.m ph.d uu b.c a.d u.s.w u.v.m jh jhd o.ä bros dept ave blvd rd"
    " v.chr n.chr j.-c"
)
"""It goes on only when a small letter or a number comes: 5 p.m. today, but "at 5 p.m. Then"."""

MONTHS: Final = _words(
    "januar jänner februar märz april mai juni juli august september oktober november dezember"
    " january february march may june july october december"
)
DAYS: Final = _words("monday tuesday wednesday thursday friday saturday sunday today tonight tomorrow")
HOURS: Final = frozenset({"a.m", "p.m"})
SHORT_LAST: Final = _words(
    "yes no ok okay sure done well fine good hi hey here now on off up out it you me him us true home bye said"
    " ja nein gut klar da hier an aus zu auf ab nun gern oui non bien ici là fait sí vale hola aquí ya sì bene goed"
)
"""Short words that end a sentence often and are no abbreviation: a first sentence need not wait for what follows."""
ORDINAL_BEFORE: Final = _words(
    "am der die das dem den des im vom zum zur beim bis ab seit ein kein mein dein sein ihr unser euer"
    " letzten nächsten ersten letzte nächste"
) | {
    stem + ending
    for stem in ("ein", "kein", "mein", "dein", "sein", "ihr", "unser", "unsr", "eur", "dies", "jed", "welch")
    for ending in ("e", "en", "em", "er", "es")
}
"""German words before an ordinal number, which is written with a full stop: das 2. Mal, der 1. Weltkrieg."""

ORDINAL_NAMES: Final = _words(
    "fc fsv sc sv vfb bundesliga liga weltkrieg weihnachtstag weihnachtsfeiertag advent klasse stock platz jahrhundert"
    " halbzeit auflage"
)
"""What has an ordinal number wherever it stands: 1. FC Bayern."""

PARTICLES: Final = _words("le la de du des van von")
"""How a name may begin: M. Le Pen."""

STARTERS: Final = _words(
    "the it it's this that these those he she we they i i'm i'll you there here in on at for but and so if when what"
    " how why yes no a an my your our his her its after as by to let please then now also"
    " der die das es er sie wir ich du ihr ein eine dies diese dieser dann danach aber und wenn was wie ja nein auf für"
    " hier dort auch bitte ist sonst jetzt heute morgen außerdem ok okay super alles dort mit man so"
    " le la les l'an il elle nous vous je tu ce cette ces un une des et mais si dans en pour c'est puis"
    " el los las y pero este esta esto yo él ella después luego también"
)
"""Words that begin many sentences: after an initial or a number they tell that a new one begins."""
