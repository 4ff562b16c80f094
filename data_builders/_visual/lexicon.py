"""Names of things that a picture may show, in English and Chinese: what the grounding check takes for an object.

A line is a concept, its other names and its kinds, and its Chinese names. As in CHAIR (arXiv:1809.02156, appendix) a
kind grounds its category and is grounded by it: who sees a bird box may say "seagull". A group's own names are
grounded by any of its members. The 80 categories are COCO's; the other concepts are what people speak of besides.
"""

from __future__ import annotations

from data_builders._visual.plain_words import names

CATEGORIES = """
[person]
person: people human man men woman women boy girl guy lady gentleman child children kid toddler baby babies infant adult
  teenager teen youth male female crowd pedestrian passerby passersby bystander spectator skateboarder surfer skier
  snowboarder biker cyclist bicyclist motorcyclist rider batter pitcher umpire referee athlete player swimmer dancer
  bride groom mother father mom dad son daughter brother sister husband wife grandmother grandfather grandma policeman
  policewoman policemen firefighter fireman soldier chef cook waiter waitress nurse photographer farmer fisherman cowboy
  clown runner jogger hiker golfer boxer singer musician guitarist lifeguard businessman businessmen businesswoman
  | 人 人们 人物 男人 女人 男士 女士 男子 女子 男孩 女孩 孩子 小孩 儿童 婴儿 宝宝 少年 老人 行人 路人 男性 女性 人群
    厨师 警察 士兵 球员 骑手 滑雪者
  冲浪者 滑板者 服务员 新娘 新郎 母亲 父亲 妈妈 爸爸 农民 渔夫 运动员
[vehicle: vehicle | 车辆 交通工具]
bicycle: bike cycle bicycles tricycle | 自行车 单车 脚踏车
car: automobile sedan hatchback taxi cab jeep suv minivan van limousine convertible coupe police-car
  | 汽车 轿车 小汽车 出租车 车子 面包车
motorcycle: motorbike moped scooter bike dirt-bike harley | 摩托车 机车 电动车
airplane: plane aeroplane aircraft jet airliner jetliner jumbo-jet biplane passenger-jet | 飞机 客机 喷气机
bus: double-decker school-bus minibus trolleybus coach-bus | 公交车 公共汽车 巴士 大巴 客车
train: locomotive tram trolley streetcar subway-train railcar freight-train | 火车 列车 电车 地铁列车 高铁
truck: lorry pickup pickup-truck semi fire-truck firetruck tow-truck dump-truck trailer van | 卡车 货车 皮卡 消防车
boat: ship sailboat ferry canoe kayak yacht raft rowboat gondola motorboat speedboat vessel barge
  | 船 小船 帆船 轮船 游艇 渡轮 独木舟 皮划艇
[street]
traffic light: stoplight traffic-signal stop-light signal-light | 红绿灯 交通灯 信号灯
fire hydrant: hydrant fireplug | 消防栓 消火栓
stop sign: | 停车标志 停止标志 停车牌
parking meter: meter | 停车计时器 停车收费表 停车咪表
bench: pew | 长椅 长凳
[animal: animal creature wildlife mammal | 动物]
bird: seagull gull pigeon dove sparrow crow raven robin parrot parakeet cockatoo duck duckling goose geese swan hen
  rooster chicken turkey eagle hawk falcon owl pelican flamingo ostrich penguin peacock heron stork crane finch seabird
  | 鸟 鸟儿 小鸟 海鸥 鸽子 麻雀 乌鸦 鹦鹉 鸭子 鸭 鹅 天鹅 鸡 公鸡 母鸡 老鹰 猫头鹰 火烈鸟 鸵鸟 企鹅 孔雀
cat: kitten kitty tabby feline siamese | 猫 小猫 猫咪
dog: puppy pup canine hound husky poodle terrier retriever bulldog dachshund corgi beagle labrador chihuahua collie
  | 狗 小狗 犬 狗狗 哈士奇
horse: pony foal stallion mare colt steed | 马 马匹 小马
sheep: lamb ram ewe | 羊 绵羊 羔羊 小羊
cow: cattle bull calf ox oxen steer heifer bovine | 牛 奶牛 母牛 公牛 小牛
elephant: | 大象 象 小象
bear: grizzly cub polar-bear panda | 熊 棕熊 北极熊 黑熊 熊猫
zebra: | 斑马
giraffe: | 长颈鹿
[accessory]
backpack: knapsack rucksack back-pack bag | 背包 双肩包 书包
umbrella: parasol | 雨伞 伞 阳伞 遮阳伞
handbag: purse tote clutch satchel pocketbook bag | 手提包 手袋 挎包 提包 包
tie: necktie bow-tie bowtie | 领带 领结
suitcase: luggage baggage briefcase carry-on bag | 行李箱 手提箱 旅行箱 行李
[sports]
frisbee: flying-disc disc | 飞盘
skis: ski | 滑雪板 雪橇板
snowboard: | 单板滑雪板 滑雪板
sports ball: ball baseball basketball football soccer-ball tennis-ball volleyball golf-ball beach-ball
  | 球 足球 篮球 棒球 网球 排球
kite: parasail | 风筝
baseball bat: bat | 棒球棒 球棒 球棍
baseball glove: mitt baseball-mitt catcher's-mitt glove | 棒球手套 接球手套
skateboard: longboard skate-board | 滑板
surfboard: surf-board boogie-board bodyboard paddleboard | 冲浪板
tennis racket: racket racquet tennis-racquet | 网球拍 球拍
[tableware]
bottle: flask | 瓶子 瓶 酒瓶 水瓶
wine glass: wineglass goblet champagne-glass glass | 酒杯 红酒杯 葡萄酒杯 高脚杯
cup: mug teacup coffee-cup glass tumbler paper-cup | 杯子 杯 茶杯 咖啡杯 马克杯 水杯
fork: | 叉子 叉 餐叉
knife: knives butter-knife cleaver | 刀 刀子 餐刀 小刀
spoon: teaspoon ladle | 勺子 汤匙 勺 调羹
bowl: | 碗
[food]
banana: | 香蕉
apple: | 苹果
sandwich: sub burger hamburger cheeseburger panini wrap blt | 三明治 汉堡 汉堡包
orange: tangerine clementine mandarin | 橙子 橘子 柑橘
broccoli: | 西兰花 花椰菜
carrot: | 胡萝卜
hot dog: hotdog sausage frankfurter bratwurst | 热狗 香肠
pizza: calzone | 比萨 披萨
donut: doughnut | 甜甜圈 多纳圈
cake: cupcake cheesecake birthday-cake wedding-cake | 蛋糕
[furniture: furniture | 家具]
chair: armchair recliner stool barstool lawn-chair folding-chair rocking-chair chaise | 椅子 扶手椅 凳子 座椅 椅
couch: sofa loveseat settee futon chaise | 沙发 长沙发
potted plant: houseplant plant pot-plant flowerpot planter | 盆栽 植物 绿植 花盆
bed: bunk mattress crib cot | 床 床铺 双人床
dining table: table coffee-table desk dinner-table counter picnic-table tabletop nightstand
  | 餐桌 桌子 桌 书桌 茶几 台子
toilet: commode urinal | 马桶 坐便器 厕所
[electronics]
tv: television tv-set television-set flat-screen monitor | 电视 电视机 显示器
laptop: notebook-computer laptop-computer computer macbook | 笔记本电脑 手提电脑 电脑
mouse: computer-mouse mice | 鼠标
remote: remote-control controller game-controller wii-controller wiimote wii-remote | 遥控器 手柄
keyboard: | 键盘
cell phone: cellphone phone smartphone mobile-phone telephone iphone mobile-device | 手机 电话 智能手机
[appliance: appliance | 电器 家电]
microwave: microwave-oven | 微波炉
oven: stove range stovetop cooker | 烤箱 炉子 炉灶
toaster: toaster-oven | 烤面包机 吐司机
sink: washbasin basin washbowl | 水槽 洗手池 洗手盆 水池
refrigerator: fridge freezer icebox | 冰箱 冰柜
[indoor]
book: textbook notebook magazine paperback | 书 书本 书籍 图书
clock: clock-tower alarm-clock wall-clock | 时钟 钟 闹钟 挂钟 钟表
vase: | 花瓶
scissors: shears scissor | 剪刀
teddy bear: teddy stuffed-animal stuffed-bear stuffed-toy plush plush-toy | 泰迪熊 玩具熊 毛绒玩具
hair drier: hairdryer hair-dryer blow-dryer blow-drier | 吹风机
toothbrush: tooth-brush | 牙刷
"""

MORE = """
[animal]
deer: elk moose reindeer antelope fawn buck stag gazelle | 鹿 驯鹿 麋鹿
goat: billy-goat | 山羊
pig: hog piglet boar swine | 猪 小猪
rabbit: bunny hare | 兔子
squirrel: chipmunk | 松鼠
monkey: ape chimpanzee gorilla baboon orangutan | 猴子 猩猩
lion: lioness | 狮子
tiger: | 老虎
leopard: cheetah jaguar panther | 豹子 猎豹
wolf: wolves coyote | 狼
fox: foxes | 狐狸
camel: llama alpaca | 骆驼 羊驼
donkey: mule | 驴 驴子
kangaroo: wallaby koala | 袋鼠 考拉
hippo: hippopotamus rhino rhinoceros | 河马 犀牛
buffalo: bison yak | 水牛 野牛
fish: goldfish salmon trout tuna | 鱼 金鱼
shark: | 鲨鱼
dolphin: whale orca porpoise | 海豚 鲸鱼
seal: walrus sea-lion otter | 海豹 海狮
turtle: tortoise | 乌龟 海龟
snake: python cobra | 蛇
lizard: gecko iguana chameleon dinosaur | 蜥蜴 恐龙
frog: toad | 青蛙
crocodile: alligator | 鳄鱼
rat: hamster guinea-pig hedgehog porcupine raccoon skunk beaver badger | 老鼠 仓鼠 刺猬 浣熊
bat: |
crab: lobster shrimp octopus squid jellyfish starfish | 螃蟹 龙虾 章鱼 水母
unicorn: dragon mermaid | 独角兽
[insect: insect bug | 昆虫 虫子]
butterfly: butterflies moth | 蝴蝶
bee: wasp hornet bumblebee | 蜜蜂
spider: scorpion | 蜘蛛
ant: beetle ladybug dragonfly grasshopper mosquito caterpillar snail worm | 蚂蚁 甲虫 瓢虫 蜻蜓 蜗牛
[vehicle]
helicopter: chopper | 直升机
tractor: bulldozer excavator forklift | 拖拉机 推土机 挖掘机
ambulance: | 救护车
wagon: carriage chariot buggy rickshaw | 马车
cart: shopping-cart trolley pushcart luggage-cart golf-cart wheelbarrow | 手推车 购物车 推车
stroller: pram baby-carriage | 婴儿车
wheelchair: | 轮椅
submarine: | 潜艇
rocket: spaceship spacecraft space-shuttle satellite | 火箭 飞船
drone: quadcopter | 无人机
balloon: hot-air-balloon blimp airship | 气球 热气球
sled: sledge sleigh toboggan snowmobile jet-ski | 雪橇
roller skate: rollerblade ice-skate | 溜冰鞋 旱冰鞋
parachute: paraglider hang-glider | 降落伞
tank: cannon | 坦克 大炮
[instrument: instrument musical-instrument | 乐器]
guitar: banjo ukulele mandolin electric-guitar | 吉他
violin: fiddle cello viola double-bass | 小提琴 大提琴
piano: grand-piano organ accordion harmonica | 钢琴 手风琴
drum: drum-set cymbal tambourine xylophone | 鼓
trumpet: trombone saxophone tuba bugle clarinet flute oboe bagpipe | 小号 萨克斯 长笛
harp: | 竖琴
microphone: mic megaphone | 麦克风 话筒
[furniture]
shelf: shelves bookshelf bookcase bookshelves | 书架 架子
cabinet: cupboard wardrobe dresser closet sideboard armoire drawer | 柜子 橱柜 衣柜 抽屉
lamp: lantern lampshade chandelier floor-lamp desk-lamp table-lamp | 灯 台灯 吊灯 灯笼
mirror: | 镜子
curtain: drape window-blind | 窗帘
rug: carpet doormat | 地毯
pillow: cushion | 枕头 靠垫 抱枕
blanket: quilt comforter duvet bedspread | 毯子 被子
ottoman: footstool beanbag | 脚凳
hammock: | 吊床
fireplace: | 壁炉
bathtub: tub jacuzzi | 浴缸
shower: showerhead shower-curtain | 淋浴 花洒
painting: portrait poster picture-frame mural | 油画 海报 画像
statue: sculpture bust figurine mannequin | 雕像 雕塑 塑像
chessboard: chess-set chess-piece | 国际象棋 象棋
trophy: medal | 奖杯 奖牌
globe: | 地球仪
telescope: microscope binoculars binocular | 望远镜 显微镜
candle: candlestick | 蜡烛
ladder: stepladder | 梯子
tent: teepee | 帐篷
flag: banner pennant | 旗帜 旗子 国旗
crown: tiara | 皇冠 王冠
[appliance]
computer: desktop-computer | 电脑 计算机
printer: photocopier scanner fax-machine | 打印机 复印机
camera: camcorder tripod webcam | 相机 照相机 摄像机
radio: stereo boombox record-player turntable | 收音机
speaker: loudspeaker | 音箱 喇叭
headphone: earphone headset earbud | 耳机
tablet: ipad e-reader | 平板电脑
calculator: | 计算器
fan: ceiling-fan | 风扇 电扇
heater: radiator air-conditioner | 暖气 空调
washing machine: washer dryer dishwasher | 洗衣机 洗碗机
vacuum cleaner: vacuum | 吸尘器
blender: mixer food-processor juicer | 搅拌机 榨汁机
coffee maker: espresso-machine coffee-machine | 咖啡机
kettle: teapot coffee-pot teakettle | 水壶 茶壶
iron: ironing-board | 熨斗
sewing machine: typewriter | 缝纫机 打字机
flashlight: torch | 手电筒
light bulb: lightbulb | 灯泡
battery: charger | 电池 充电器
robot: | 机器人
[tool: | 工具]
hammer: mallet axe hatchet | 锤子 斧头
saw: chainsaw hacksaw | 锯子
screwdriver: wrench pliers drill | 螺丝刀 扳手 钳子
shovel: spade rake pitchfork hoe | 铲子 耙子
broom: mop dustpan | 扫帚 拖把
bucket: pail | 水桶 桶
barrel: keg | 木桶
hose: sprinkler watering-can | 水管
rope: lasso | 绳子
chain: padlock | 链子
ruler: protractor | 尺子
paintbrush: paint-roller easel | 画笔 画架
sword: dagger spear bow-and-arrow crossbow shield | 剑 长矛 盾牌
gun: rifle pistol shotgun revolver | 枪 手枪 步枪
fishing rod: fishing-pole | 钓鱼竿 鱼竿
anchor: buoy | 船锚 浮标
paddle: oar | 船桨 桨
wheelbarrow: | 独轮车
lawnmower: lawn-mower | 割草机
needle: syringe stethoscope thermometer | 针筒 听诊器 温度计
[clothing]
hat: cap beanie sombrero fedora bonnet visor cowboy-hat baseball-cap top-hat | 帽子 草帽
helmet: hard-hat | 头盔 安全帽
glove: mitten | 手套
scarf: shawl scarves bandana | 围巾
shirt: t-shirt blouse tshirt polo tank-top jersey | 衬衫 T恤 上衣
jacket: coat blazer hoodie sweater sweatshirt cardigan raincoat parka vest | 夹克 外套 大衣 毛衣 雨衣
dress: gown skirt kimono | 裙子 连衣裙
jean: pants trousers jeans shorts slacks leggings overalls | 裤子 牛仔裤 短裤
suit: tuxedo wetsuit swimsuit bikini | 西装 泳衣
shoe: boot sneaker sandal slipper high-heel flip-flop cleat | 鞋 鞋子 靴子 拖鞋
sock: stocking | 袜子
belt: suspender | 皮带 腰带
eyeglasses: glasses sunglasses goggles spectacles eyeglass | 眼镜 墨镜 太阳镜 护目镜
watch: wristwatch | 手表
ring: necklace bracelet earring pendant jewelry jewel | 戒指 项链 手镯 耳环 首饰
apron: bib | 围裙
mask: | 面具 口罩
wallet: | 钱包
towel: washcloth | 毛巾
diaper: pacifier | 尿布 奶嘴
[food]
fruit tree: |
pear: peach plum apricot mango papaya | 梨 桃子 李子 芒果
grape: raisin | 葡萄
strawberry: strawberries blueberry raspberry blackberry cherry cherries berry berries | 草莓 蓝莓 樱桃
lemon: lime grapefruit | 柠檬 青柠 柚子
pineapple: | 菠萝
watermelon: melon cantaloupe | 西瓜 哈密瓜
kiwi: coconut avocado pomegranate fig | 猕猴桃 椰子 牛油果 石榴
tomato: tomatoes | 西红柿 番茄
potato: potatoes french-fries fries french-fry | 土豆 马铃薯 薯条
onion: garlic | 洋葱 大蒜
cucumber: pickle zucchini eggplant | 黄瓜 茄子
lettuce: cabbage spinach celery asparagus cauliflower salad | 生菜 卷心菜 菠菜 芹菜 沙拉
mushroom: | 蘑菇
corn: popcorn | 玉米 爆米花
pumpkin: squash | 南瓜
bean: pea lentil | 豆子 豌豆
bread: loaf baguette bagel bun toast croissant muffin roll | 面包 吐司 牛角包
cheese: | 奶酪 芝士
egg: omelet omelette | 鸡蛋 煎蛋
bacon: ham steak meatball pork beef | 培根 火腿 牛排 猪肉 牛肉
rice: | 米饭
noodle: pasta spaghetti lasagna macaroni ramen | 面条 意大利面
soup: stew chili | 汤
sushi: | 寿司
taco: burrito quesadilla nacho | 墨西哥卷
pancake: waffle crepe | 煎饼 松饼 华夫饼
cookie: biscuit cracker brownie | 饼干 曲奇
pie: tart pastry | 派 馅饼
candy: chocolate lollipop marshmallow | 糖果 巧克力
ice cream: gelato popsicle sundae | 冰淇淋 冰激凌
coffee: latte espresso cappuccino | 咖啡
tea: | 茶
wine: champagne beer whiskey cocktail | 葡萄酒 红酒 啤酒 鸡尾酒
milk: yogurt milkshake smoothie | 牛奶 酸奶 奶昔
juice: lemonade soda | 果汁 汽水
ketchup: mustard mayonnaise syrup honey jam butter | 番茄酱 芥末 蜂蜜 黄油
salt shaker: pepper-shaker | 盐瓶
[fruit: fruit | 水果]
[tableware]
plate: platter saucer | 盘子 碟子
tray: | 托盘
pan: frying-pan skillet wok saucepan | 平底锅 煎锅
pot: cauldron | 锅
spatula: tongs whisk rolling-pin cutting-board | 锅铲 擀面杖 砧板
chopstick: | 筷子
napkin: tissue paper-towel | 餐巾 纸巾
jar: canister thermos | 罐子 保温杯
pitcher: jug carafe | 水罐
straw: | 吸管
basket: hamper | 篮子
tablecloth: placemat | 桌布
[plant: | ]
tree: palm-tree christmas-tree pine-tree apple-tree | 树 树木 大树 圣诞树 棕榈树
flower: rose tulip daisy sunflower lily orchid bouquet daffodil dandelion | 花 鲜花 花朵 玫瑰 郁金香 向日葵
cactus: cacti bamboo fern | 仙人掌 竹子
bush: shrub hedge | 灌木 灌木丛
[structure]
bridge: drawbridge | 桥 大桥
fountain: waterfall | 喷泉 瀑布
lighthouse: windmill | 灯塔 风车
castle: pyramid temple pagoda | 城堡 金字塔 寺庙
church: cathedral mosque chapel | 教堂 清真寺
skyscraper: | 摩天大楼
barn: silo | 谷仓
ferris wheel: roller-coaster carousel merry-go-round | 摩天轮 过山车 旋转木马
street sign: street-light streetlight lamppost street-lamp billboard | 路牌 路灯 广告牌
trash can: garbage-can dumpster trashcan wastebasket recycling-bin garbage-bin trash-bin | 垃圾桶 垃圾箱
mailbox: phone-booth telephone-booth vending-machine atm | 邮箱 电话亭 自动售货机
traffic cone: barricade | 路锥 锥桶
swing: slide seesaw trampoline playground-slide swing-set | 秋千 滑梯 跷跷板 蹦床
volcano: iceberg | 火山 冰山
rainbow: lightning | 彩虹 闪电
moon: | 月亮 月球
[toy: toy | 玩具]
doll: puppet action-figure barbie | 娃娃 玩偶 木偶
lego: building-block rubik's-cube jigsaw-puzzle puzzle | 积木 魔方 拼图
yo-yo: hula-hoop | 呼啦圈
playing card: deck-of-cards dice domino | 扑克牌 骰子
golf club: hockey-stick pool-cue cricket-bat | 高尔夫球杆
dumbbell: barbell treadmill exercise-bike | 哑铃 跑步机
goalpost: basketball-hoop tennis-net goal-post | 球门 篮筐
[paper]
newspaper: | 报纸
envelope: postcard letterhead | 信封 明信片
pen: pencil crayon marker | 钢笔 铅笔 圆珠笔 蜡笔
map: | 地图
box: carton crate cardboard-box | 盒子 箱子 纸箱
gift: gift-box | 礼物 礼品
calendar: whiteboard blackboard chalkboard | 日历 白板 黑板
stapler: paperclip eraser | 订书机 橡皮
toothpaste: shampoo soap lotion | 牙膏 洗发水 肥皂
toilet paper: | 卫生纸
hairbrush: comb razor lipstick perfume | 梳子 剃须刀 口红 香水
"""

VERBS = names(
    """
    bat bear book bowl box brush bus buck can chain comb cook crane cup drill drum duck dress fan fish fly fork
    hammer hedge hog honey iron jam jar ladder lamb mask match microwave mirror mop mule nail organ paddle paint pan
    phone pilot pitcher plane plant plug pump rake ram range ring rock roll rope rose saw scale seal seat shelf
    shield ship shovel shower sink ski skate skateboard slide snake snowboard speaker spear spring squash stamp
    steer straw sub suit surf swing table tank tape tart tie toast torch tow toy train tram truck umpire vacuum
    video watch whisk wolf wrap cycle bike fence parasail counter letter lime mustard parachute fox worm bug
    ape bull couch cap coat cow fawn crab crow bridge monkey
    """
)
"""Names that are verbs or adjectives as well: they count where a noun stands."""
