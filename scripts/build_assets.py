"""Build ``mcit/assets/demo`` from the npm package emoji-datasource-google 16.0.0, which the maintainers unpack first.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python scripts/build_assets.py package

Writes ``emoji.zip`` (64 x 64 PNGs as published), ``emoji.json`` (names, categories and the role of each) and the
licence texts. The same input gives the same bytes.

Roles are disjoint by object: the tasks ``kind``, ``naming`` and ``lowvision`` of the demo name theirs below, and
``base`` (for the alignment mix) is what remains after everything that shares a word or a look with a task's object
is dropped.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TARGET = Path(__file__).parent.parent / "mcit" / "assets" / "demo"
VERSION = "16.0.0"

NAMING = """dog cat cow pig rabbit bear frog monkey_face chicken penguin octopus snail bee turtle elephant apple banana
lemon strawberry pizza hamburger carrot car bus airplane rocket key umbrella guitar bike""".split()
LOWVISION = """lion_face owl crab butterfly whale pineapple grapes watermelon corn mushroom cheese_wedge bread cactus
sunflower crown scissors camera trumpet drum_with_drumsticks balloon snowman_without_snow chair candle hammer""".split()
KIND_TRAIN = {
    "animal": """rat tiger goat sheep koala camel wolf fox_face deer gorilla giraffe_face hedgehog kangaroo raccoon
    otter bat shark squid lobster ant ladybug eagle swan""".split(),
    "food": """hotdog taco burrito fries popcorn croissant bacon pancakes pretzel waffle eggplant avocado broccoli
    garlic tomato melon peach pear kiwifruit doughnut chocolate_bar cupcake beer""".split(),
    "vehicle": """racing_car steam_locomotive railway_car bullettrain_side bullettrain_front train2 tram train minibus
    fire_engine police_car taxi truck tractor mountain_railway scooter motor_scooter helicopter ship speedboat canoe
    pickup_truck metro""".split(),
    "object": """wrench axe carpentry_saw screwdriver magnet shield tophat necktie jeans dress boot scarf saxophone
    violin harp bed toothbrush broom briefcase telescope closed_book bulb basketball""".split(),
}
KIND_TEST = {
    "animal": """panda_face zebra_face hippopotamus sloth beaver moose dolphin shrimp beetle parrot peacock crocodile
    snake""".split(),
    "food": """sandwich fried_egg bagel sushi onion cucumber mango coconut pie lollipop ramen icecream
    wine_glass""".split(),
    "vehicle": """ambulance articulated_lorry racing_motorcycle auto_rickshaw monorail trolleybus motor_boat ferry boat
    small_airplane flying_saucer blue_car aerial_tramway""".split(),
    "object": """dagger_knife toolbox socks coat banjo accordion toilet school_satchel microscope computer lock phone
    handbag""".split(),
}

PLAIN = {
    "monkey_face": "monkey",
    "bike": "bicycle",
    "lion_face": "lion",
    "cheese_wedge": "cheese",
    "drum_with_drumsticks": "drum",
    "snowman_without_snow": "snowman",
    "carpentry_saw": "saw",
    "tophat": "top hat",
    "closed_book": "book",
    "bulb": "light bulb",
    "dagger_knife": "dagger",
    "school_satchel": "backpack",
    "kiwifruit": "kiwi",
    "icecream": "ice cream",
    "small_airplane": "small plane",
    "boat": "sailing boat",
    "hotdog": "hot dog",
    "bullettrain_side": "bullet train",
    "bullettrain_front": "fast train",
    "train2": "old train",
    "racing_motorcycle": "motorcycle",
    "articulated_lorry": "lorry",
    "aerial_tramway": "cable car",
    "blue_car": "family car",
    "steam_locomotive": "locomotive",
}
"""Names of task objects and of base objects that their short name does not say well."""

CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
DROPPED = """feet pig_nose phoenix busstop station construction octagonal_sign oil_drum motorway railway_track
suspension_railway mountain_cableway compression broken_chain link new_moon waxing_crescent_moon
first_quarter_moon full_moon waning_gibbous_moon last_quarter_moon waning_crescent_moon new_moon_with_face
first_quarter_moon_with_face last_quarter_moon_with_face full_moon_with_face poodle service_dog guide_dog dog2
hatching_chick baby_chick hatched_chick rooster rabbit2 mouse2 cow2 tiger2 pig2 boar monkey polar_bear
light_rail ox water_buffalo oncoming_bus oncoming_automobile oncoming_taxi oncoming_police_car
airplane_departure airplane_arriving closed_umbrella umbrella_on_ground umbrella_with_rain_drops
beach_with_umbrella brown_mushroom camera_with_flash video_camera movie_camera old_key lock_with_ink_pen
closed_lock_with_key unlock snowman passenger_ship dromedary_camel dragon green_apple pear whale2 snow_cloud
lightning partly_sunny barely_sunny mostly_sunny partly_sunny_rain wind_blowing_face cyclone fog foggy milky_way
thunder_cloud_and_rain night_with_stars sunrise sunrise_over_mountains city_sunset city_sunrise bridge_at_night
cityscape spades clubs hearts diamonds black_joker low_battery level_slider control_knobs card_index
card_index_dividers linked_paperclips page_facing_up bookmark_tabs notebook_with_decorative_cover ledger
green_book blue_book orange_book books chart_with_upwards_trend chart_with_downwards_trend incoming_envelope
envelope_with_arrow e-mail mailbox_with_mail mailbox_with_no_mail mailbox_closed outbox_tray inbox_tray date
lower_left_fountain_pen dvd minidisc mag_right nazar_amulet hamsa placard identification_card funeral_urn gun
drop_of_blood briefs one-piece_swimsuit hair_pick rice_cracker oden fish_cake flatbread stuffed_flatbread
baguette_bread pouring_liquid beverage_box tanabata_tree rice_scene reminder_ribbon admission_tickets
red_envelope firecracker house_buildings derelict_house_building house_with_garden european_post_office
love_hotel department_store hindu_temple kaaba european_castle hotel tokyo_tower office convenience_store leaves
herb shamrock leafless_tree wilted_flower blossom rosette white_flower empty_nest label trackball
desktop_computer three_button_mouse basket stars star2 sunny hotsprings field_hockey_stick_and_ball softball
womans_flat_shoe mans_shoe hiking_boot pouch military_helmet helmet_with_white_cross pick hammer_and_pick
hammer_and_wrench notes musical_note dolls beers champagne fork_and_knife file_folder no_bell first_place_medal
shallow_pan_of_food bowl_with_spoon root_vegetable musical_score diya_lamp japan sports_medal izakaya_lantern
vertical_traffic_light bellhop_bell lotion_bottle national_park camping desert snow_capped_mountain mount_fuji
ear_of_rice cup_with_straw takeout_box motorized_wheelchair fuelpump ballot_box_with_ballot card_file_box
spiral_calendar_pad round_pushpin sauropod tiger tamale badminton_racquet_and_shuttlecock
table_tennis_paddle_and_ball ice_hockey_stick_and_puck cricket_bat_and_ball flower_playing_cards pea_pod
page_with_curl petri_dish alembic vhs film_frames lab_coat black_cat cat2 poultry_leg nest_with_eggs clock1
clock2 clock3 clock4 clock5 clock6 clock7 clock8 clock9 clock10 clock11 clock12 clock130 clock230 clock330
clock430 clock530 clock630 clock730 clock830 clock930 clock1030 clock1130 clock1230 timer_clock
hourglass_flowing_sand yen dollar euro pound money_with_wings chart receipt earth_africa earth_asia
globe_with_meridians world_map speaker sound loud_sound mute calling iphone second_place_medal third_place_medal
medal""".split()
"""Abstract signs, twins of another picture, kin of a task's object, and things a 64-pixel picture does not tell."""

PLAIN_BASE = {
    "ring": "gem ring",
    "star": "gold star",
    "8ball": "billiard ball",
    "adhesive_bandage": "plaster",
    "alarm_clock": "alarm clock",
    "art": "palette",
    "athletic_shoe": "sneaker",
    "ballet_shoes": "ballet shoe",
    "barber": "barber pole",
    "bell_pepper": "pepper",
    "billed_cap": "cap",
    "birthday": "birthday cake",
    "black_bird": "crow",
    "black_nib": "nib",
    "blowfish": "pufferfish",
    "bow_and_arrow": "archery",
    "bubble_tea": "bubble drink",
    "bubbles": "bubbles",
    "bug": "caterpillar",
    "building_construction": "crane",
    "cake": "shortcake",
    "canned_food": "tin can",
    "card_file_box": "file box",
    "carousel_horse": "carousel",
    "cd": "disc",
    "chains": "chain",
    "circus_tent": "circus",
    "clapper": "film clapper",
    "classical_building": "museum",
    "clinking_glasses": "toast",
    "confetti_ball": "confetti",
    "couch_and_lamp": "sofa",
    "crossed_swords": "swords",
    "curling_stone": "curling",
    "custard": "pudding",
    "cut_of_meat": "steak",
    "dark_sunglasses": "sunglasses",
    "dart": "target",
    "deciduous_tree": "tree",
    "desert_island": "island",
    "diving_mask": "mask",
    "dove_of_peace": "dove",
    "dragon_face": "dragon",
    "droplet": "drop",
    "ear_of_rice": "rice plant",
    "earth_americas": "globe",
    "electric_plug": "plug",
    "email": "envelope",
    "evergreen_tree": "pine tree",
    "eyeglasses": "glasses",
    "fallen_leaf": "dry leaf",
    "file_cabinet": "cabinet",
    "film_projector": "projector",
    "fire": "flame",
    "fire_extinguisher": "extinguisher",
    "first_place_medal": "gold medal",
    "fishing_pole_and_fish": "fishing rod",
    "flags": "streamers",
    "floppy_disk": "disk",
    "flying_disc": "frisbee",
    "folding_hand_fan": "fan",
    "football": "rugby ball",
    "four_leaf_clover": "clover",
    "frame_with_picture": "painting",
    "fried_shrimp": "prawn",
    "game_die": "dice",
    "gem": "gemstone",
    "gift": "present",
    "ginger_root": "ginger",
    "glass_of_milk": "milk",
    "golf": "golf flag",
    "green_salad": "salad",
    "headstone": "gravestone",
    "hocho": "kitchen knife",
    "honey_pot": "honey",
    "hot_pepper": "chilli",
    "ice_cream": "sundae",
    "ice_skate": "skating boot",
    "jack_o_lantern": "pumpkin",
    "japanese_castle": "castle",
    "jigsaw": "puzzle",
    "knife_fork_plate": "plate",
    "lacrosse": "lacrosse stick",
    "leafy_green": "lettuce",
    "long_drum": "conga",
    "lower_left_ballpoint_pen": "pen",
    "lower_left_crayon": "crayon",
    "lower_left_paintbrush": "paintbrush",
    "mag": "magnifier",
    "magic_wand": "wand",
    "mahjong": "mahjong tile",
    "mantelpiece_clock": "mantel clock",
    "manual_wheelchair": "wheelchair",
    "martial_arts_uniform": "judo suit",
    "mate_drink": "mate",
    "meat_on_bone": "meat",
    "mega": "megaphone",
    "microbe": "germ",
    "microphone": "singing mic",
    "mirror_ball": "disco ball",
    "moneybag": "money bag",
    "mortar_board": "graduation cap",
    "moyai": "stone head",
    "musical_keyboard": "piano",
    "nesting_dolls": "nesting doll",
    "nut_and_bolt": "bolt",
    "ocean": "wave",
    "pencil2": "pencil",
    "performing_arts": "theatre masks",
    "playground_slide": "slide",
    "postal_horn": "post horn",
    "postbox": "red mailbox",
    "probing_cane": "cane",
    "purse": "purse",
    "rain_cloud": "rain",
    "ribbon": "bow",
    "ring_buoy": "life ring",
    "ringed_planet": "planet",
    "roll_of_paper": "toilet roll",
    "rolled_up_newspaper": "rolled paper",
    "rotating_light": "siren",
    "rugby_football": "leather ball",
    "running_shirt_with_sash": "jersey",
    "safety_vest": "vest",
    "satellite": "space probe",
    "satellite_antenna": "dish antenna",
    "seat": "armchair",
    "shinto_shrine": "shrine",
    "shirt": "polo shirt",
    "shopping_bags": "shopping bag",
    "shopping_trolley": "shopping cart",
    "ski": "skis",
    "smoking": "cigarette",
    "snow_capped_mountain": "mountain",
    "soccer": "football",
    "spider_web": "cobweb",
    "spiral_calendar_pad": "calendar",
    "spiral_note_pad": "notepad",
    "sports_medal": "sports medal",
    "statue_of_liberty": "statue",
    "straight_ruler": "ruler",
    "studio_microphone": "microphone",
    "sun_with_face": "sun",
    "t-rex": "dinosaur",
    "tada": "party popper",
    "tea": "teacup",
    "telephone_receiver": "receiver",
    "tennis": "tennis ball",
    "thong_sandal": "flip flop",
    "triangular_ruler": "set square",
    "tropical_drink": "juice",
    "tropical_fish": "angelfish",
    "tumbler_glass": "whisky",
    "tv": "television",
    "unicorn_face": "unicorn",
    "video_game": "gamepad",
    "wastebasket": "bin",
    "wedding": "chapel",
    "wind_chime": "chime",
    "womans_clothes": "blouse",
    "womans_hat": "sun hat",
    "wood": "logs",
    "x-ray": "x-ray",
    "zap": "lightning",
}

STOP = {"with", "and", "of", "the", "a", "on", "in", "light", "top", "old", "family", "small", "racing", "fast", "ice"}
"""Words that do not make two objects alike."""
LONGEST_NAME = 16
NEAR = 30.0
"""Difference of thumbnails (0 to 255) below which two pictures count as one drawing."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args(argv)
    published = json.loads((options.package / "emoji.json").read_text())
    entries = [entry for entry in published if entry["has_img_google"] and entry["category"] in CATEGORIES]
    chosen = choose(entries, options.package / "img/google/64")
    options.target.mkdir(parents=True, exist_ok=True)
    write_zip(options.target / "emoji.zip", chosen, options.package / "img/google/64")
    rows = [{key: value for key, value in entry.items() if key != "file"} for entry in chosen]
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    (options.target / "emoji.json").write_text(f"[\n{lines}\n]\n")
    (options.target / "LICENSE-emoji-data.txt").write_text((options.package / "LICENSE").read_text())


def choose(entries: list[dict[str, Any]], pictures: Path) -> list[dict[str, Any]]:
    """Every emoji of a role, by role and short name."""
    by_name = {entry["short_name"]: entry for entry in entries}
    tasks = [(name, "naming", "") for name in NAMING] + [(name, "lowvision", "") for name in LOWVISION]
    for role, groups in (("kind-train", KIND_TRAIN), ("kind-test", KIND_TEST)):
        tasks += [(name, role, group) for group, names in groups.items() for name in names]
    taken = [described(by_name[name], role, group) for name, role, group in tasks]
    words = set().union(*(stems(entry["name"]) for entry in taken))
    looks = [thumbnail(pictures / entry["file"]) for entry in taken]
    base: list[dict[str, Any]] = []
    names = {entry["name"] for entry in taken}
    for entry in sorted(entries, key=lambda item: item["short_name"]):
        row = described(entry, "base", "")
        if not suitable(entry, row["name"]) or row["name"] in names or stems(row["name"]) & words:
            continue
        look = thumbnail(pictures / row["file"])
        if min(difference(look, other) for other in looks) < NEAR:
            continue
        names.add(row["name"])
        base.append(row)
    return sorted(taken + base, key=lambda row: (row["role"], row["short_name"]))


def described(entry: dict[str, Any], role: str, group: str) -> dict[str, Any]:
    short = entry["short_name"]
    name = PLAIN.get(short) or PLAIN_BASE.get(short) or re.sub(r"_(face|without_snow)$", "", short).replace("_", " ")
    row = {"short_name": short, "name": name, "category": entry["category"], "subcategory": entry["subcategory"]}
    return {**row, "role": role, "group": group, "file": entry["image"]}


def suitable(entry: dict[str, Any], name: str) -> bool:
    return entry["short_name"] not in DROPPED and 2 < len(name) <= LONGEST_NAME


def stems(name: str) -> set[str]:
    return {word.rstrip("s") for word in re.split(r"[ _-]", name) if word not in STOP}


def thumbnail(path: Path) -> np.ndarray:
    """16 x 16 x 4 between 0 and 255, colours multiplied by opacity."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGBA"), dtype=np.float32)
    picture[..., :3] *= picture[..., 3:] / 255
    side = picture.shape[0] // 16
    blocks = picture[: 16 * side, : 16 * side].reshape(16, side, 16, side, 4)
    return np.asarray(blocks.mean((1, 3)), dtype=np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference per colour where either is opaque, the better of straight and mirrored."""
    return min(_difference(one, other), _difference(one, other[:, ::-1]))


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    opaque = np.maximum(one[..., 3], other[..., 3]).sum() / 255
    return float(np.abs(one - other).sum() / (4 * opaque))


def write_zip(path: Path, chosen: Iterable[dict[str, Any]], pictures: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry in sorted(chosen, key=lambda row: row["short_name"]):
            # A fixed date: the bytes must not depend on when they were written.
            member = zipfile.ZipInfo(f"{entry['short_name']}.png", date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            archive.writestr(member, (pictures / entry["file"]).read_bytes())


if __name__ == "__main__":
    main()
