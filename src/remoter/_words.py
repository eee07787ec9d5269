"""Short English words for passwords and fingerprints; on both machines. It imports nothing that takes time.

The list of 1024 never changes: a fingerprint must read the same in every version.
"""

import os

_TEXT = """
able acorn actor adult agent agile alarm album alder alert algae alive alpha alps amber amble ample angle
ankle annex apple apron arch arena argon arrow art ashen aspen aster atlas atom attic avid awake award
axis axle azure baby bacon badge bagel baker balmy bamboo band banjo bank barber bark barley barn baron
basil basin bath baton beacon beaver beige belt bench beret big bike birch bird bison black blank blend
blink bloom blue blunt boat bobcat bold bolt bonus book boot botany bounce bowl box brace brain branch
brass brave brick bridge bright brim brisk broad brook broom brown brush bubble bucket buffet bugle build
bulb bunny burlap burrow button buzz cabin cable cactus cake calm camel camp canal candle candy canoe
canvas cape carbon card cargo carol carpet carve castle cedar cello cement chain chair chalk chant chapel
charm chart cheese chef chess chest chief chili chime chin cider cinema circus citrus city civic clam
clamp clay clean clerk clever cliff climb clinic cloak clock cloth cloud club coach coast cobalt cocoa
coffee coil coin comet comic copper coral cork corner cotton couch cougar cover cozy crab cradle craft
crane crater cream crew crisp crow crown cruise crumb crust cube cumin cup curly curry curve cycle daily
daisy dance dawn deacon decade deck delta denim depot desk detail diesel disco dish diver dock doctor
domino donut door double dove dozen draft dragon drama draw dream dress drift drill drink drive drum dry
duck duet dune dust duvet eager eagle early earth easel east easy echo edge editor egret elbow elder elf
elk elm ember empire empty engine enjoy entry envoy epic equal era errand essay event exit expert eye
fable face factor falcon famous fancy farm fast father fawn feast fence fern ferry fiber field fig film
final finch finger fire first fish five fjord flag flame flash flat flint float flock flora flow flute fly
foam focus fog folk forest fork fox frame fresh friend frog frost fruit fudge full funnel fur gable galaxy
game garage garlic garnet gate gazebo gecko gem genre geyser giant ginger glad glass glide globe glove
glow glue goat gold golf good goose gourd grace grain grand grape graph grass gravy gray green greet grid
grill grin group grove growth guard guest guide guitar gull gum gusto habit half hall hand happy harbor
hardy harp hat haven hawk hazel head heath hedge helium herb hero heron hiking hill hinge hippo hobby
hockey holly home honey hood hoop hope horn horse hotel house humor hut hybrid ice icicle icon idea igloo
image inch indigo ink inlet input insect iris iron island item ivory ivy jacket jade jam jar jazz jelly
jet jewel jigsaw jog join jolly joy juggle juice jumbo jump jungle kayak keel keen kelp kettle kid kilt
kind king kiosk kite kitten kiwi knee koala label lace lady lagoon lake lamb lamp land laptop large lark
laser latch latte laugh laurel lava lawn layer leaf league learn ledge lemon lens lentil letter level
lever light lilac lily lime linen lion little lively llama lobby local locket lodge logic long loop lotus
loud loyal lucky lunar lunch lynx lyric magic magnet major mango manor mantle maple margin marina marsh
mask mason match math matrix meadow melon memory menu merit merry mesh meteor middle midway mild mile milk
mimic mind mine mint mist mitten mobile model modest monkey moon moose mosaic moss moth motor mouth movie
mulch mural museum music mutual myth nacho name narrow nation nature navy nectar nest nickel nine noble
noise noodle noon north nose notch note novel oak oasis oat oboe ocean octave office olive omega onion
onyx opal open opera optic orbit orca orchid order organ otter outer oval oven owl oyster pacer paddle
page paint palm panda panel pantry paper parade park parrot party pasta patch path patio peach peanut
pearl pecan pedal pen pencil pepper perch petal phone photo piano pigeon pillow pilot pine pink pitch
pivot pixel pizza place plank plant plate plaza plum plus pocket poem poet point polar polite polka polo
pond pony pool poplar poppy porch potato powder press prime print prism prize proud puddle puffin pulse
puma puppy purple purse puzzle quail quake quart queen quest quick quiet quill quilt quince quiver quiz
racket radar radio radish raft rail rally ranch rapid raven razor ready recipe record reef regal resin
ribbon rice rich ridge ripple rise river roast robin robot rodeo roof rook room rope round rover royal
ruby rug ruler rumba rural rustic safari saga salad salmon salsa salt sample sand satin saucer scale scarf
scoop scope scout screen scroll seat second seed select sequel serene seven shade shadow shape share shark
sharp shawl sheep shelf shield shine ship shirt shoe shop shore shrimp shrub silent silk silver singer
siren sister six ski skill skirt sky slate sled sleep sleeve slice slide slogan slope slow small smart
smile snack snail snow soap soccer social sock soda sofa soft solar solid solo sonar song soup south space
spark speech spice spider spin spirit splash spoon sport spot spring spruce square squid stable staff
stage stair stamp star state statue steam stem step stereo stone stool story stove stream string stripe
studio sugar summer sunny sunset super surf swan sweet swift swim swing syrup system table taco tango tape
target taxi team tempo ten tennis tent thaw theme thick thorn three thumb thyme ticket tiger tiny title
toast tofu tomato tone topaz topic torch toucan tower town toy track trade trail train tray treat tree
trek trend trial tribe trio trophy trout truck true trunk trust tuba tulip tuna tundra turbo turkey turnip
tutor tweed twelve twenty twig twin umber uncle union unique unit urban usher valley value vapor vase vast
vault velvet vessel vest video view villa vinyl violet vision visit vital vivid vocal voice volley vote
waffle wagon walnut waltz warm water wave wax wealth wedge well west wheat wheel whisk white wide wild
willow wind wing winter wisdom wise wolf wool word work world wrist yacht yard yarn yeast yellow yodel
yoga yogurt young zebra zero zest zinc zipper zodiac zone zoo
"""

WORDS = tuple(_TEXT.split())

PASSWORD_WORDS = 3
"""Words of a password made here: 30 bits. A guess needs a connection; one address gets 2 of them a
minute and all together 5 a second (`_turns`). So one address alone needs 500 years for half of the
2**30, and the whole world together finds it within a week with a chance of 1 in 350."""


def make_password() -> str:
    """Three words such as `otter-lamp-nine`: 30 bits that are easy to type."""
    return "-".join(WORDS[int.from_bytes(os.urandom(2)) % len(WORDS)] for _ in range(PASSWORD_WORDS))
