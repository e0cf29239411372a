"""What is said aloud when there is no answer: short sentences for ears, in the listener's language where we have it."""

from collections.abc import Mapping
from typing import Final

DEFECT: Final = "defect"
AGAIN: Final = "again"
MODEL: Final = "model"
SLOW: Final = "slow"
TOO_LONG: Final = "too long"
UNSPEAKABLE: Final = "unspeakable"

_KINDS: Final[Mapping[str, str]] = {
    "busy": AGAIN,
    "expired": AGAIN,
    "cancelled": AGAIN,
    "shutting_down": AGAIN,
    "provider_unavailable": MODEL,
    "provider_error": MODEL,
    "model_not_found": MODEL,
    "unauthorized": MODEL,
    "timeout": SLOW,
    "invalid_request": TOO_LONG,
    "context_overflow": TOO_LONG,
}
"""Error codes of the contract; all others are defects."""

_SENTENCES: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        DEFECT: "Sorry, something went wrong.",
        AGAIN: "I am busy right now. Please ask again in a moment.",
        MODEL: "Sorry, my language model does not answer.",
        SLOW: "Sorry, that took too long.",
        TOO_LONG: "Sorry, I cannot work with that question.",
        UNSPEAKABLE: "I have an answer, but it cannot be read aloud.",
    },
    "de": {
        DEFECT: "Entschuldigung, da ist etwas schiefgegangen.",
        AGAIN: "Ich bin gerade beschäftigt. Frag bitte gleich noch einmal.",
        MODEL: "Entschuldigung, mein Sprachmodell antwortet nicht.",
        SLOW: "Entschuldigung, das hat zu lange gedauert.",
        TOO_LONG: "Entschuldigung, mit dieser Frage kann ich nichts anfangen.",
        UNSPEAKABLE: "Ich habe eine Antwort, aber sie lässt sich nicht vorlesen.",
    },
    "fr": {
        DEFECT: "Désolé, quelque chose s'est mal passé.",
        AGAIN: "Je suis occupé. Redemande-moi dans un instant, s'il te plaît.",
        MODEL: "Désolé, mon modèle de langue ne répond pas.",
        SLOW: "Désolé, cela a pris trop de temps.",
        TOO_LONG: "Désolé, je ne peux pas traiter cette question.",
        UNSPEAKABLE: "J'ai une réponse, mais elle ne peut pas être lue à voix haute.",
    },
    "es": {
        DEFECT: "Lo siento, algo ha salido mal.",
        AGAIN: "Ahora estoy ocupado. Pregúntame otra vez dentro de un momento.",
        MODEL: "Lo siento, mi modelo de lenguaje no responde.",
        SLOW: "Lo siento, ha tardado demasiado.",
        TOO_LONG: "Lo siento, no puedo responder a esa pregunta.",
        UNSPEAKABLE: "Tengo una respuesta, pero no se puede leer en voz alta.",
    },
    "it": {
        DEFECT: "Mi dispiace, qualcosa è andato storto.",
        AGAIN: "Ora sono occupato. Chiedimelo di nuovo tra un momento.",
        MODEL: "Mi dispiace, il mio modello linguistico non risponde.",
        SLOW: "Mi dispiace, ci è voluto troppo tempo.",
        TOO_LONG: "Mi dispiace, non riesco a rispondere a questa domanda.",
        UNSPEAKABLE: "Ho una risposta, ma non si può leggere ad alta voce.",
    },
    "nl": {
        DEFECT: "Sorry, er ging iets mis.",
        AGAIN: "Ik ben even bezig. Vraag het zo nog eens.",
        MODEL: "Sorry, mijn taalmodel geeft geen antwoord.",
        SLOW: "Sorry, dat duurde te lang.",
        TOO_LONG: "Sorry, met die vraag kan ik niets.",
        UNSPEAKABLE: "Ik heb een antwoord, maar dat kan niet worden voorgelezen.",
    },
    "zh": {
        DEFECT: "抱歉，出了点问题。",
        AGAIN: "我正在忙，请稍后再问一次。",
        MODEL: "抱歉，我的语言模型没有回应。",
        SLOW: "抱歉，花的时间太长了。",
        TOO_LONG: "抱歉，我无法处理这个问题。",
        UNSPEAKABLE: "我有答案，但无法朗读出来。",
    },
    "ja": {
        DEFECT: "すみません、問題が発生しました。",
        AGAIN: "ただいま手が離せません。少し待ってからもう一度聞いてください。",
        MODEL: "すみません、言語モデルが応答しません。",
        SLOW: "すみません、時間がかかりすぎました。",
        TOO_LONG: "すみません、その質問には対応できません。",
        UNSPEAKABLE: "答えはありますが、読み上げることができません。",
    },
}
FALLBACK: Final = "en"


def apology(code: str, *languages: str | None) -> str:
    """Return the sentence for an error code, or for UNSPEAKABLE, in the first of the languages that we speak.

    Languages are BCP 47 tags (`de`, `de-CH`, `pt_BR`), None where unknown; English when none of them is there.
    """
    kind = code if code == UNSPEAKABLE else _KINDS.get(code, DEFECT)
    spoken = (tag.replace("_", "-").partition("-")[0].lower() for tag in languages if tag)
    found = next((one for one in spoken if one in _SENTENCES), FALLBACK)
    return _SENTENCES[found][kind]
