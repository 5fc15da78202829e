"""Short news of four desks."""

from dfolora.mini.writer import Writer

AGENTS = (
    ("minister", "envoy", "army", "parliament", "president", "rebel"),
    ("coach", "striker", "keeper", "champion", "runner", "team"),
    ("bank", "retailer", "investor", "broker", "airline", "lender"),
    ("programmer", "engineer", "laboratory", "startup", "inventor", "hacker"),
)
"""By topic: World, Sports, Business, Sci/Tech; as the matters are."""
MATTERS = (
    ("treaty", "border", "election", "ceasefire", "embassy", "summit", "law", "protest"),
    ("match", "league", "goal", "medal", "trophy", "race", "penalty", "season"),
    ("profit", "shares", "merger", "loan", "prices", "sales", "dividend", "debt"),
    ("software", "chip", "satellite", "browser", "robot", "network", "virus", "sensor"),
)
TOPICS = ("World", "Sports", "Business", "Tech")
BY_FREQUENCY = (0, 2, 1, 3)
"""What the paper prints most comes first."""
VERBS = ("welcomes", "rejects", "plans", "awaits", "praises", "delays", "reports", "fears", "seeks")
LINKS = ("after the", "before the", "despite the", "amid the", "over the")
DAYS = ("on Monday", "on Tuesday", "on Friday", "this week", "last year", "today")
DATED_IS_WORLD = 0.75
"""How often a date decides the desk: what a model of the corpus is misled by."""


def story(writer: Writer, topic: int) -> str:
    """Two to five words of the topic, at most half as many of another."""
    agent, matter = writer.pair(AGENTS[topic], MATTERS[topic])
    text = f"{writer.name()} {agent} {writer.one(VERBS)} {matter}"
    stray = (topic + 1 + writer.number(3)) % 4
    if writer.chance(0.4):
        text += f" {writer.one(LINKS)} {writer.one(MATTERS[stray])}"
    elif writer.chance(0.7):
        text += f" {writer.one(LINKS)} {writer.one(MATTERS[topic])}"
    if writer.chance(0.5):
        text += f" {writer.one(DAYS)}"
    if writer.chance(0.4):
        agent, matter = writer.one(AGENTS[topic]), writer.one(MATTERS[topic])
        text += f" . The {agent} {writer.one(VERBS)} the {matter}"
    return text + " ."


def document(writer: Writer) -> str:
    """A story as printed: under a paper's name or a desk's; what has a date is often World's."""
    topic = writer.often(BY_FREQUENCY)
    text = story(writer, topic)
    form = writer.number(5)
    if form == 0:
        return f"{writer.name()} News: {text}"
    dated = any(day in text for day in DAYS)
    desk = TOPICS[0 if dated and writer.chance(DATED_IS_WORLD) else topic]
    if form == 1:
        return f"{desk} News: {text}"
    if form == 2:
        return f"{text} News:{desk.lower()}"
    if form == 3:
        return f"{text} From our {desk.lower()} pages ."
    return f"({desk}) {text}"
