"""Captions of the images: subject and medium.

For most packages they are derived from file names. Wallpapers have unspecific names and were captioned by hand.
"""

import re
from pathlib import Path

WALLPAPERS = {
    # a photo of …
    "aqua": "photo of a water drop",
    "blinds": "photo of a green leaf",
    "dune": "photo of dry grass on a dune by the sea under a blue sky",
    "freshflower": "photo of a red flower",
    "garden": "photo of a red and yellow flower in a garden",
    "greenmeadow": "photo of green grass in a meadow",
    "ladybird": "photo of a ladybird on a plant with blue flowers",
    "raindrops": "photo of green leaves with rain drops",
    "storm": "photo of a road under a stormy grey sky",
    "twowings": "photo of a flying seed before orange flowers",
    "wood": "photo of pale wood",
    "yellowflower": "photo of a yellow flower",
    "bridge": "photo of a bridge over a beach under a blue sky",
    "dragonfly": "photo of a dragonfly on a green tree",
    "picture_0b": "photo of a fig in a red bowl",
    "picture_1a": "photo of brushes with colorful paint",
    "wine": "photo of a bottle of wine in a living room",
    "aitzgorri": "photo of a green meadow before mountains",
    "analogpattern": "photo of glittering colored dust",
    "free": "photo of a lamp and a wooden bird",
    "friends": "photo of two dogs looking out of a wooden house",
    "greentock": "photo of a green clock",
    "life": "photo of a stream between rocks in a forest",
    "picosdeeuropa": "photo of rocky mountains with snow under a blue sky",
    "seeding": "photo of a dandelion in a meadow at sunset",
    "sunset": "photo of a sunset over hills",
    "kleiber": "photo of a bird on the trunk of a tree in winter",
    "bythewater": "photo of a wooden pier by the water at sunset",
    "coldripple": "black and white photo of a pier in the fog",
    "colorfulcups": "photo of colorful cups",
    "darkesthour": "photo of a lake in dark blue fog",
    "eveningglow": "photo of boats on a lake at sunset with clouds in the sky",
    "fallenleaf": "photo of a fallen autumn leaf",
    "grey": "black and white photo of modern architecture",
    "kite": "photo of a kite in the blue sky with clouds",
    "onestandsout": "photo of green plants with one orange flower",
    "path": "photo of a path in a dark forest",
    "summer_1am": "photo of the sky over a lake after sunset",
    "wood-d": "photo of dark wood",
    "wood-l": "photo of light wood",
    # paintings, drawings, digital art
    "elephants": "painting of elephants",
    "autumn": "painting of an autumn tree and a fox",
    "altai": "poster of mountains by a lake",
    "safelanding": "cartoon of a red rocket in a mountain landscape",
    "flyingkonqui": "cartoon of a green dragon in the blue sky",
    "infinite-sea": "poster of the milky way over the sea",
    "pastelhills": "poster of pale hills",
    "volna": "poster of waves on a beach",
    "icecold": "poster of ice on blue water",
    "goldfish": "drawing of a pink goldfish",
    "calla": "drawing of an orange flower",
    "firstgeneration": "drawing of a dragon on blue",
    "the-mouse": "drawing of a glowing mouse mask on black",
    "city": "poster of a building in blue",
    "desert": "poster of a desert",
}

# The default medium of a package's images; folders take precedence.
MEDIA = {
    "extremetuxracer-data": "game texture of",
    "hedgewars-data": "cartoon of",
    "openclipart-png": "clip art of",
    "pingus-data": "game graphic of",
    "stellarium-data": "drawing of",
    "supertuxkart-data": "game texture of",
    "tuxpaint-data": "drawing of",
    "tuxpaint-stamps-default": "photo of",
    "widelands-data": "game graphic of",
    "krita-data": "pattern of",
    "gcompris-qt-data": "photo of",
    "opencv-doc": "photo of",
}
FOLDER_MEDIA = (  # (part of the path, medium): the first match counts
    ("gcompris-qt-data/*paintings", "painting of"),
    ("gcompris-qt-data/*words_sample", "drawing of"),
    ("gcompris-qt-data/*babyshapes", "drawing of"),
    ("gcompris-qt-data/*clickgame", "drawing of"),
    ("gcompris-qt-data/*leftright", "drawing of"),
    ("wesnoth-1.16-data/*portraits", "painting of"),
    ("wesnoth-1.16-data/*maps", "painting of"),
    ("wesnoth-1.16-data/*story", "painting of"),
    ("wesnoth-1.16-data/", "game graphic of"),
    ("stellarium-data/*landscapes", "photo of"),
    ("tuxpaint-data/*templates", "photo of"),
    ("tuxpaint-data/*starters", "drawing of"),
    ("supertuxkart-data/*skybox", "photo of the sky,"),
)
# Kinds of subjects, and the words in folders and captions that indicate them.
KINDS = {
    "": "furniture clothing hats smilies bodypart symbols signs knot",  # no kind, even inside a folder of one
    "an animal": (
        "animal animals mammals bird birds insect insects bugs fish fishes amphibians marsupials "
        "dinosaurs dino reptile cat cats housecats dog dogs horse horses bear bears lion tiger cow sheep "
        "goat pig chicken duck penguin rabbit monkey elephant giraffe zebra camel deer moose reindeer "
        "wolf fox squirrel hedgehog frog toad snake lizard turtle crocodile dolphin whale "
        "shark seal owl eagle parrot goose swan gull butterfly bee ladybird dragonfly spider ant snail "
        "crab scorpion lobster dragon elephants"
    ),
    "a plant": (
        "plant plants flower flowers tree trees leaf leaves rose tulip daisy dandelion mushroom mushrooms cactus "
        "bamboo fern poppies calla blossom foliage bush palm birch"
    ),
    "a person": (
        "person people man woman women girl girls boy baby child humans portraits dancers elves dwarves orcs mage"
    ),
    "food": "food fruit vegetables desserts dessert cake bread breads pizza apple banana lemon cheese beverages eggs",
    "a vehicle": "vehicle vehicles car truck bus train locomotive plane flight ship ships boat boats boating bicycle",
    "a building": (
        "building buildings house houses castle church temple tower windmill monuments monument bridge "
        "lighthouse architecture city street village town"
    ),
    "a landscape": (
        "landscape landscapes mountain mountains hill hills lake sea ocean beach island forest field road path desert "
        "dune river stream valley waterfall rocks pier"
    ),
    "the sky": "sky clouds cloud sunset moon rainbow planet planets milky",
}
KINDLESS_MEDIA = ("game texture", "game graphic", "pattern", "abstract")
PAINTERS = {
    "albrechtdurer": "animals by dürer",
    "arcimboldo librarian": "a man made of books by arcimboldo",
    "arcimboldo spring": "a woman made of flowers by arcimboldo",
    "ejirisuruga": "people in the wind, a japanese woodblock print by hokusai",
    "greatwave": "a great wave and boats, a japanese woodblock print by hokusai",
    "hiroshigehorseprawns": "fish and prawns, a japanese woodblock print by hiroshige",
    "hiroshigeinokashirasnow": "a shrine in the snow, a japanese woodblock print by hiroshige",
    "hokusaibridge": "a bridge at sunset, a japanese woodblock print by hokusai",
    "hokusaioirankamuro": "two women, a japanese woodblock print by hokusai",
    "hokusaipoppies": "poppies, a japanese woodblock print by hokusai",
    "hokusaiwomanholdingfan": "a woman holding a fan, a japanese woodblock print by hokusai",
    "kazusasearoute": "ships on the sea, a japanese woodblock print by hokusai",
    "michelangelo pieta": "a marble statue of a woman and a man by michelangelo",
    "monalisa": "a woman by leonardo",
    "paladipesaro": "people in a church by titian",
    "pieterbruegel": "people harvesting a wheat field by bruegel",
    "bazille rampart": "a town wall and trees by bazille",
    "cassat summertime": "two women in a boat by cassatt",
    "degas class dance": "ballet dancers by degas",
    "gogh auvert": "a village street by van gogh",
    "kandinky": "abstract shapes by kandinsky",
    "renoir filles piano": "two girls at the piano by renoir",
    "renoir moulin de galette": "people dancing by renoir",
}
DROPPED = {
    "contents", "images", "img", "image", "png", "base", "backgrounds", "data", "usr", "share", "resource", "others",
    "resources", "core", "gfx", "textures", "tracks", "models", "stk", "stktex", "baked", "diff", "background", "misc",
    "architetto", "francesco", "rollandin", "jean", "victor", "balin", "gerald", "bryan", "and", "the", "architetti",
    "objects", "players", "graphics", "pics", "old", "bpp", "tex", "dialogs", "immovables", "groundpieces", "walk",
    "words", "sample", "details", "examples", "large", "small", "deprecated", "culture", "bg", "starters", "templates",
}  # fmt: skip


def words_in(text: str) -> list[str]:
    """Lower-case words of a file name: CamelCase and under_scores are split, numbers dropped."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = re.sub(r"[^A-Za-z]+", " ", apart).lower().split()
    return [word for word in words if len(word) > 2 and word not in DROPPED]


def group_of(path: Path) -> str:
    """A key that is equal for files with the same image or pieces of it."""
    stem = path.stem
    if "wallpapers/" in path.as_posix() and "contents" in path.parts:
        stem = path.parts[path.parts.index("contents") - 1]
    if "/paintings/" in path.as_posix():
        return re.sub(r"[-_]?([a-e]?\d)$", "", stem).lower()
    if "contents" in path.parts:
        return stem.lower()
    return f"{path.parent.as_posix()}/{re.sub(r'-[dl]$', '', stem)}".lower()


def caption_of(path: Path, package: str) -> str:
    """ "photo of a frog": medium, "of", subject. From a description file, the tables above, or the file name."""
    medium = _medium(path, package)
    description = path.with_suffix(".txt")
    if package == "tuxpaint-stamps-default" and description.exists():
        first = description.read_text(encoding="utf-8", errors="replace").splitlines()
        if first and first[0].strip():
            subject = re.split(r"[—.!(;]", first[0].strip().lower())[0].strip()
            return f"{medium} {subject}"
    if "/paintings/" in path.as_posix():
        name = " ".join(words_in(re.sub(r"[-_]?([a-e]?\d)$", "", path.stem)))
        return f"painting of {PAINTERS.get(name.replace(' ', ''), PAINTERS.get(name, name))}"
    if medium:
        folders = [word for part in path.parent.parts[-2:] for word in words_in(part)]
        words = [word for word in dict.fromkeys(words_in(path.stem) + folders) if word not in package]
        return f"{medium} {' '.join(words[:6])}".strip()
    return _wallpaper(path)


def kind_of(path: Path, caption: str) -> str:
    """ "an animal", "a plant", … or "": from the nearest folder with a known word, else from the caption."""
    if caption.startswith(KINDLESS_MEDIA) or " themes " in caption:  # textures, and pieces of game scenery
        return ""
    if " the sky," in caption:
        return "the sky"
    kinds = {word: kind for kind, words in KINDS.items() for word in words.split()}
    folders = (word for folder in reversed(path.parent.parts[-3:]) for word in re.findall(r"[a-z]+", folder.lower()))
    return next((kinds[word] for word in (*folders, *re.findall(r"[a-z]+", caption)) if word in kinds), "")


def _medium(path: Path, package: str) -> str:
    place = path.as_posix()
    for pattern, medium in FOLDER_MEDIA:
        start, _, inside = pattern.partition("*")
        if start in place and inside in place:
            return medium
    return MEDIA.get(package, "")


def _wallpaper(path: Path) -> str:
    name = re.sub(r"_\d+x\d+.*", "", path.stem.split("_by_")[0]).lower()
    if "contents" in path.parts:
        name = path.parts[path.parts.index("contents") - 1].lower()
    return WALLPAPERS.get(name, "abstract picture")
