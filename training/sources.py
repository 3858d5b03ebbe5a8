"""The Debian packages with the training images of the embedded model."""

PACKAGES = (
    "debian-edu-artwork-emerald",
    "debian-edu-artwork-softwaves",
    "extremetuxracer-data",
    "gcompris-qt-data",
    "gimp-data",
    "gnome-backgrounds",
    "hedgewars-data",
    "krita-data",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "opencv-doc",
    "openclipart-png",
    "pingus-data",
    "plasma-workspace-wallpapers",
    "stellarium-data",
    "supertuxkart-data",
    "sway-backgrounds",
    "tuxpaint-data",
    "tuxpaint-stamps-default",
    "ukui-wallpapers",
    "wesnoth-1.16-data",
    "widelands-data",
)

# Maximum number of 256-pixel crops per image of a package. Photographs and paintings are cropped often and at
# several scales; clip art and game sprites, which are numerous and similar, once.
CROPS_PER_PICTURE = {
    "gnome-backgrounds": 48,
    "lomiri-wallpapers-16.04": 48,
    "lomiri-wallpapers-20.04": 48,
    "mate-backgrounds": 48,
    "plasma-workspace-wallpapers": 48,
    "sway-backgrounds": 24,
    "ukui-wallpapers": 48,
    "debian-edu-artwork-emerald": 12,
    "debian-edu-artwork-softwaves": 12,
    "gcompris-qt-data": 10,
    "tuxpaint-stamps-default": 6,
    "tuxpaint-data": 6,
    "krita-data": 4,
    "opencv-doc": 4,
    "stellarium-data": 3,
    "wesnoth-1.16-data": 4,
    "supertuxkart-data": 2,
    "gimp-data": 2,
}
CROPS_OTHERWISE = 1

# Diagrams, manuals, screenshots, unit sprites and icons are poor training images.
SKIPPED_WORDS = (
    "screen", "icon", "/html/", "/tribes/", "thumb", "preview", "minimap", "captures", "/grub/",
    "normal", "_nm.", "gloss", "font", "/nebulae/", "/flags/", "/teamlogos/", "elev.png",
    "trimaps", "output_mattes",
)  # fmt: skip

# The example paintings, which are always held out.
HELD_OUT_WORDS = (
    "greatwave", "gogh", "kandinky", "hokusaipoppies", "hiroshigeinokashirasnow", "pieterbruegel",
    "renoir-moulin", "degas", "painting-colors", "hokusaibridge", "monalisa", "cassat",
)  # fmt: skip
