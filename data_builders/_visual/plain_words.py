"""English words that name no object of a picture: places, parts, materials, what is thought, and small words.

They end a noun phrase ("a dog bed" is a bed, "a train station" a place), and an unknown noun is one that is not here.
"""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


PLACES = names(
    """
    aisle alley apartment area arena attic avenue backdrop background backyard balcony bakery bar basement bathroom
    bay beach bedroom block booth border building cabin cafe cafeteria campground canal canyon carpark ceiling
    cemetery center centre city classroom cliff coast coastline corner corridor counter country countryside court
    courtyard crosswalk curb deck den desert destination dining display dock downtown driveway dune enclosure
    entrance environment event exhibit exhibition exterior facility factory farm farmland field fence fencing floor
    foreground forest garage garden gate gallery gas grass grassland gravel greenery greenhouse ground gym habitat
    hall hallway harbor highway hill hillside home horizon hospital hotel house indoors industry inside installation
    interior intersection island kitchen kiosk lake land landscape lane lawn library lobby location lot lounge mall
    market marina meadow mountain museum nature neighborhood nest ocean office orchard outdoors outside park parking
    pasture patch path patio pavement pedestal pen performance pier place plain planet platform playground plaza
    pond pool porch port prairie property railing railroad railway ramp range region resort restaurant restroom
    river road roadside roadway roof rooftop room runway sand savanna scene scenery school sea seaside seating
    setting sewer shade shadow shelter shop shore shoreline showroom sidewalk site sky skyline slope snow space spot
    square stable stadium stage stair staircase stairway stall station store stream street studio suburb surface
    surrounding swamp terminal terrace terrain theater town track traffic trail tunnel university vegetation
    vicinity village wall walkway water waterfront waterway wave weather wilderness window windowsill wood woodland
    workplace workshop world yard zone zoo airport fog bus-stop cloud sun sunlight sunset sunrise rain storm mud
    dirt dust ice smoke fire flame light lights lighting night daytime day morning evening afternoon dusk dawn
    foliage leaf leaves branch branches trunk log stump rock rocks stone boulder pebble hay bale twig weed moss soil
    puddle ripple foam crest surf wake crack hole bullpen dugout mound base infield outfield net goal rink rail
    crossing bank ledge
    """
)

PARTS = names(
    """
    arm arms back backrest badge band bar base beak bell belly blade board body bottom bow brake branch brim bristle
    buckle button cable cap cage chassis cheek chest chin claw clip collar compartment container control cord cover
    crust cuff detail dial door doorway ear edge elbow engine eye eyebrow face feather feet fin finger fingernail
    foot frame front fur glaze frosting icing sprinkle topping sauce grill gear grip hair hand handle handlebar head
    headboard headlight hinge hoof hooves hood horn interior jaw joint key keypad knee knob label lap lapel layer
    leg lens lid limb line lip lock logo mane mast mouth muzzle nail neck nose number nozzle oar paint palm panel
    patch paw pedal petal pillar plumage pocket pole porch post rack railing rear rib rim ring row saddle sail seat
    seats screen seam shell shoulder side sign signage skin sleeve slice slot snout spoke spot spout stand steering
    stem step stick stitch strap string strip stripe surface tail tag tank tentacle thigh throat thumb tip tire toe
    tongue tooth teeth top torso tower trim trunk tube tusk udder valve vein wheel whisker windshield wing wire
    wrist zipper lever siding brick brickwork beam shutter chimney arch antler coat wool hide mark marking dot
    pattern design print text writing letter word words bumper mirror fender propeller hull cockpit cargo bunch pile
    stack group heap pair set bit piece part half quarter portion section chunk handful dozen lot plenty variety
    assortment collection selection range array series cluster crowd herd flock pack load amount majority couple
    rest few kind type sort form shape size color colour shade tone hue length height width weight end middle left
    right corner hanger stud structure framework rein leash harness bridle
    """
)

MATERIALS = names(
    """
    aluminum asphalt brass bronze canvas cardboard cement ceramic clay cloth concrete copper cotton denim fabric
    felt fiber foil fur glass gold granite iron lace leather linen marble metal nylon paper plaster plastic plywood
    porcelain rubber silk silver steel stone straw tile timber tin velvet vinyl wax wicker wire wood wool yarn
    stainless
    """
)

IDEAS = names(
    """
    ability accent access accident account act action activity addition adjustment advantage adventure advertisement
    advice affair age agenda aim air alert allure altitude ambiance ambience amenity analysis anchor angle answer
    anxiety appeal appearance appetite approach appointment area argument arrangement art article artwork aspect
    asset assumption atmosphere attempt attention attire attitude attraction audience aura average awareness
    background balance barrier basis battle beauty beginning behavior behaviour belief belonging benefit beverage
    bid birthday blend blur bond bonus boost boundary break breakfast breed breeze brand budget business calm camp
    capacity care career case cause caution celebration challenge chance change character charm chat check choice
    circle circumstance class cleanup climate clothing clothes clue clutter coach combination comfort commute
    companion companionship company comparison competition complex composition concept concern conclusion condition
    conference confidence connection consequence consideration contact content contest context contrast control
    convenience conversation cool copy cost costume course coverage craft cream creativity crew crime crossing cross
    cue cuisine culture cure curiosity custom cut cycle damage danger date deal decision decor decoration delay
    delight delivery demand demonstration depth description desire dessert destination device diet difference
    difficulty dinner direction disaster discipline discount discussion dish disposal distance distraction diversity
    drama drink drive drop duration duty ease effect effort element elegance emergency emotion emphasis encounter
    energy engagement enjoyment ensemble entertainment enthusiasm entry equipment error escape essence essential
    estimate evidence example excitement exercise existence expectation experience explanation exploration exposure
    expression extension extent fact factor failure fair fall fashion fear feast feature feed feel feeling festival
    fight figure fill finish fit flair flavor flight flow focus food footing force format formation friend
    friendship fun function fuel future game garment gathering gaze gear gesture glance glimpse glow goods grace
    grasp growth guess guest guide habit hazard health heart heat help hint history hobby holiday hour humor idea
    identity image impact importance impression improvement inch incident indication individual influence
    information ingredient injury insight inspection inspiration instance instruction intention interaction interest
    interview intimacy introduction item issue job journey joy judgment jump kick knowledge lack language laugh
    layout leader lead leap learning leisure lesson level life lifestyle lift limit link list living location look
    loss luck lunch luxury maintenance manner maneuver match material matter meal meaning means measure medium
    meeting memory mess message method metre mile mind minute miss mistake mix mixture mode model moment mood motion
    move movement music mystery name nap narrative need network news nickname noise notice notion object objective
    obstacle occasion occupation odds offer one ones opening operation opinion opportunity option order organization
    origin other others outcome outfit outing outlook overlook owner pace pain panorama party pass passage passion
    pastime past pause peace perception period permission personality perspective phase phenomenon photo photograph
    picnic picture play pleasure point policy portrayal pose position possession possibility posture potential
    practice precaution preference preparation presence preservation pressure prevalence price pride priority
    privacy problem procedure process product profession professional profile program progress project promise prop
    protection provision public purchase purpose pursuit quality question queue quiet race rate ratio reach reaction
    reader reading reality reason receipt reception record recreation reference reflection regard regulation
    relation relationship relaxation relief relocation reminder repair representation request requirement rescue
    research resident resource respect response responsibility rest result retreat return review reward rhythm ride
    right risk ritual role romance routine rule run rush safety sale sample satisfaction scale scent schedule scheme
    scenario score search season second secret sector security selection sense sensation sequence serenity service
    session setup shape share shift shot show sight signal significance silence silhouette similarity situation
    skill sleep slumber smell smile snack snap snapshot social society solution song sound source specialty species
    speed spectacle spirit sport spread staff stance standard start state statement status stay step stop storage
    story strategy strength stress stretch strike struggle stroll stunt style subject substance success suggestion
    summer sum supply support supper surprise survival swim symbol system take talent talk task taste team technique
    technology temperature tendency tension term test texture theme theory thing thought threat thrill ticket time
    title tone topic total touch tour tournament tradition training transaction transition transport transportation
    travel treat trend trick trip trouble trust try turn twist unit use user vacation value variation variety venue
    version vibe victory view viewer viewpoint vision visit visitor visual voice voyage wait walk warmth warning
    waste way week weekend weight welcome while whole wind winner winter wish wonder work worker workout year zest
    youth customer shopper vendor driver passenger traveler traveller tourist commuter employee host homeowner
    caretaker volunteer participant observer occupant neighbor student teacher artist family conductor pilot officer
    toss throw serve hit catch grab bite sip kiss hug homage nod wink stare pet expert master beginner amateur
    member partner duo trio foursome duet majority minority mealtime teatime playtime bedtime nighttime daylight
    spring autumn january february march april june july august september october november december monday tuesday
    wednesday thursday friday saturday sunday airline airshow aviation agriculture architecture electronics
    appliance accessory accessories utensil utensils cutlery silverware tableware dishware glassware cookware dishes
    cargo merchandise produce groceries grocery vegetable vegetables veggie seasoning spice herb herbs topping
    dressing dip condiment contents packaging package wrapper sticker decal graffiti ornament furnishing bedding
    linens upholstery gadget machine machinery laundry trash garbage litter debris rubble
    """
)

NOT_OBJECTS = PLACES | PARTS | MATERIALS | IDEAS
"""Heads of noun phrases that say nothing of an object."""

DETERMINERS = names("a an another one two three four five six seven eight nine ten several")
"""What a noun of an object follows for certain; "the", "some" and "his" stand before ideas too often."""
MORE_DETERMINERS = names("the this that these those his her their its our your my some many few each every")
PREPOSITIONS = names(
    """
    of with by on in at near behind under beside between above below over from into onto through against around
    alongside inside outside beneath for and or including featuring containing holding wearing carrying riding
    eating using plus
    """
)
MODALS = names("to can could will would shall should may might must not cannot n't let")
PRONOUNS = names("i you he she it we they who which that what there someone everyone people")
SMALL = (
    DETERMINERS
    | MORE_DETERMINERS
    | PREPOSITIONS
    | MODALS
    | PRONOUNS
    | names(
        """
    as is are was were be been being am do does did has have had if then than so but because while when where why
    how also just only very too more most less least both either neither nor no none any all such same own other off
    up down out about after before during until since without within across along toward towards upon per like
    unlike despite though although yet still here now once twice again perhaps possibly likely maybe s t re ve ll d
    itself himself herself themselves him them us me whose whom
    """
    )
)
"""Words that end a noun phrase."""

OPEN_ENDINGS = (
    "tion", "sion", "ness", "ity", "ance", "ence", "ism", "ship", "hood", "cy", "ing", "ings", "ful", "ous", "ive",
    "able", "ible", "ly", "ed", "less", "ish", "like", "est", "wide", "most", "ward", "some", "ology", "ics", "dom",
    "eur", "verse", "ional", "ural", "ental", "ient",
)  # fmt: skip
"""Endings of adjectives, adverbs and words of ideas: an unknown word with one of them is not taken for an object."""

SUPPOSING = names(
    """
    might may could would should can if perhaps possibly likely potentially probably maybe suggests suggest imply
    implies infer inferred indicate indicates assume assumed typically usually often generally commonly sometimes
    occasionally either plausible possible potential need needs helps help provide provides order ensure ensures
    essential important crucial such allow allows prevent avoid various benefit benefits risk risks require requires
    prefer enhance contribute promote used known offer offers caters invite invites illustrates encourage encourages
    enable enables create creates considering reason reasons
    """
)
"""A sentence with one of these reasons about things rather than saying that they are seen."""
SEEN = (
    "can see",
    "you see",
    "we see",
    "i see",
    "图中", "图片中", "画面中", "背景中", "前景中", "可以看到", "可见",
    "in the image", "in the picture", "in the scene", "in the photo", "in the background", "in the foreground",
    "is visible", "are visible", "can be seen", "is seen", "are seen", "there is", "there are", "in this image",
    "in this picture", "in this scene", "nearby is", "the image shows", "the picture shows", "the scene shows",
)  # fmt: skip
"""Unless it says one of these."""

ADJECTIVES = names(
    """
    household guardian sentiment aftermath overall together closer nearby upside outdoor indoor wooden laid taken
    well diverse further farther aside entire entirety norm landmark peer builder ecosystem uniform retry wipeout
    combines fleet ray cursor big small large tiny huge little old new young red blue green yellow white black brown
    gray grey pink purple tan dark light bright pale long short tall wide narrow high low deep thin thick fat slim
    round flat square curly straight soft hard wet dry hot cold warm cool clean dirty empty full open closed busy
    quiet loud sunny cloudy rainy snowy foggy blurry fuzzy furry fluffy cozy tidy messy pretty ugly lovely nice good
    great fine bad happy sad angry sleepy hungry elderly adult wild tame fresh ripe raw tasty sweet sour spicy shiny
    dull smooth rough heavy single double triple main major minor similar various different certain clear close
    distant near far early late quick slow fast strong weak rich poor rare common typical modern ancient vintage
    antique rustic urban rural casual formal unique quaint serene calm vivid lush vibrant simple plain complex free
    safe secure proud brave calico plush steep sheer stark bare bold brisk crisp keen mere sole solo stray stout
    sturdy tense twin usual vast wary worn
    """
)

NOT_OBJECTS_ZH = names(
    """
    马上 马路 斑马线 人行道 人行横道 河床 鹿角 牛仔 马术 象征 现象 对象 印象 景象 形象 抽象 书写 机场 车站 火车站
    公交站 停车场 停车 车道 车厢 车轮 车窗 车门 车头 船舱 树枝 树叶 树荫 花园 花纹 花样 花色 花岗岩 开花 桌面
    床上用品 鱼尾 球场 网球场 棒球场 足球场 球队 球衣 球赛 网球 棒球场地 滑雪场 汤姆 派对 钟楼 钟头 分钟 人们常 个人
    别人 人工 人类 令人 让人 使人 主人 迷人 惊人 动人 诱人 宜人 怡人 人行 人气 人造 人为 瓶颈 桥梁 包括 包含 包装
    包裹 包围 面包屑 熊熊 牛奶盒 羊毛 羊绒 鸡肉 牛皮 马车道 猫咪窝 狗窝 狗粮 猫粮 刀工 伞形 书房 书店 图书馆 床单
    枪手 剑桥 茶色 咖啡色 咖啡馆 咖啡店 茶馆 橙子色 水管道 花费 台阶 派出 马桶盖 碗柜 书法 灯光 路灯光 旗下 桨声
    盘旋 盘点 锅炉 汽车站 电车轨道 船只停靠 鼠标垫 椅背 杯垫 桶装 箱体 球形 汤色
    """
)
"""Chinese words that hold the name of a thing and aren't one: they are read first, being longer."""

NEGATORS_ZH = (
    "没有",
    "并无",
    "无",
    "不是",
    "不见",
    "看不到",
    "缺少",
    "缺乏",
    "未见",
    "像",
    "如同",
    "仿佛",
    "好似",
    "类似",
)
SUPPOSING_ZH = (
    "可能",
    "也许",
    "或许",
    "如果",
    "应该",
    "可以",
    "建议",
    "通常",
    "一般",
    "能够",
    "表明",
    "说明",
    "推断",
    "推测",
    "需要",
    "避免",
)
