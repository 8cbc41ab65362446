"""Short documents of our own writing: plain, with a sentence that is there twice, and with a paraphrase of it."""

import random

# A question, the sentence that answers it, the same in other words, and what else the document says.
TOPICS = """
why was the river bridge closed|The bridge over the river was closed because divers found deep cracks.|Inspectors shut the crossing after they discovered serious damage.|Ferries carried commuters all summer.|The mayor promised a new tram line.|Shops on the northern bank lost customers.
how did the team win the final match|The team won the final match with a penalty in the last minute.|A late spot kick decided the championship in their favour.|Tickets had sold out within an hour.|Rain delayed the opening ceremony.|The stadium was built twenty years ago.
what caused the power failure in the city|The power failure in the city was caused by a fire in a transformer.|Electricity went out when a substation burned.|Hospitals switched to their generators.|Trains stood still for three hours.|Engineers worked through the night.
when does the museum open on sunday|The museum opens at eleven in the morning on Sunday.|At weekends visitors are let into the galleries from 11 am.|Children under twelve enter free.|The cafe serves soup and cake.|A new wing shows ancient coins.
who designed the glass library|The glass library was designed by a young architect from Oslo.|A Norwegian newcomer drew the plans of the transparent reading house.|It holds two million books.|Students fill its desks in winter.|The roof collects rain water.
why do the bees leave the hive in spring|Bees leave the hive in spring because a new queen is born and the old one moves out.|When a young monarch hatches, half of the colony departs with its mother.|Beekeepers wear white suits.|Honey from lime trees is pale.|A hive weighs about forty kilos.
how is the cheese kept fresh in the mountains|The cheese is kept fresh in the mountains in cold caves behind waterfalls.|Farmers store the wheels in chilly grottoes.|Goats graze above the forest.|The path to the village is steep.|Tourists come by cable car.
what did the committee decide about the school budget|The committee decided to raise the school budget by four percent.|Members agreed on more money for classrooms.|The session lasted until midnight.|Two members were absent.|The minutes are published on Friday.
where can I renew my passport|You can renew your passport at the town hall on the second floor.|New travel documents are issued upstairs in the municipal building.|Bring two recent photographs.|Parking is free after six.|The fee is paid by card.
why did the airline cancel the flight to Lisbon|The airline cancelled the flight to Lisbon because the crew had exceeded its working hours.|The trip to Portugal was called off since the staff needed rest.|Passengers slept in the terminal.|Vouchers for dinner were handed out.|The next departure was at noon.
how much water does the plant need|The plant needs one litre of water every week.|Give it a full bottle each seven days.|It likes shade in the afternoon.|Yellow leaves can be cut off.|The pot should have a hole.
what is the speed limit on the coastal road|The speed limit on the coastal road is sixty kilometres per hour.|Drivers by the sea must not go faster than 60.|The view over the bay is famous.|Cyclists have a lane of their own.|Rockfall is common in March.
who invented the folding umbrella|The folding umbrella was invented by a miner who could not carry his cane and a parasol.|A colliery worker thought of the collapsible rain shield.|Its first version weighed a kilo.|The patent was granted in 1928.|Factories in Solingen produced it.
why is the old tower leaning|The old tower is leaning because its foundation rests on soft clay.|The ancient spire tilts since the ground beneath it gives way.|Pigeons nest under the bells.|Visitors climb three hundred steps.|A fresco inside shows the harvest.
when was the first email sent|The first email was sent in 1971 between two computers in one room.|Electronic mail began in the early seventies with a message across a lab.|Its text has been forgotten.|The keyboards were loud.|Offices still relied on typists.
how do salmon find their way home|Salmon find their way home by the smell of the river in which they hatched.|These fish return guided by the scent of their native stream.|Bears wait at the rapids.|Their flesh is rich in oil.|The eggs lie under gravel.
what made the orchestra change its conductor|The orchestra changed its conductor because he had broken his arm.|A fractured limb forced the musicians to seek another leader.|The programme included two symphonies.|The hall seats nine hundred people.|The oboe gave the note.
where is the treasure of the abbey hidden|The treasure of the abbey is hidden beneath the altar of the crypt.|Monks buried their gold under the vault's holy table.|The garden grows sage and mint.|A wall surrounds the orchard.|Pilgrims rest in the guest house.
why was the novel banned|The novel was banned because it mocked the king.|Censors forbade the book for ridiculing the monarch.|Its author lived in a garret.|The cover shows a red fox.|Copies passed from hand to hand.
how long does the battery of the drone last|The battery of the drone lasts forty minutes.|It can stay in the air for two thirds of an hour.|The camera films at night.|Spare propellers are in the box.|Wind makes it drift.
what do the scientists measure in the glacier|The scientists measure the air trapped in bubbles in the glacier.|Researchers analyse old atmosphere enclosed in the ice.|Their camp is made of tents.|A helicopter brings food.|The wind never stops there.
who pays for the repair of the roof|The owner of the building pays for the repair of the roof.|Costs of mending the tiles are borne by the landlord.|The stairs are swept on Mondays.|Bicycles belong in the cellar.|The heating was replaced last year.
why did the bakery move to the station|The bakery moved to the station because the rent in the old town had doubled.|Higher leases drove the bread makers next to the trains.|Their rye loaf won a prize.|Queues form before seven.|The oven came from Austria.
when will the comet be visible again|The comet will be visible again in the year 2061.|In about four decades the icy visitor returns to our sky.|Its tail is made of dust.|Amateurs drew it by hand.|A probe once flew past it.
how was the painting stolen|The painting was stolen through a skylight during a storm.|Thieves took the canvas by climbing in from above in bad weather.|It shows a girl with a lute.|The frame is gilded oak.|A reward has been offered.
what is the main ingredient of the soup|The main ingredient of the soup is roasted pumpkin.|It consists mostly of baked squash.|It is served with dark bread.|The recipe came from an aunt.|Pepper is added at the end.
where do the storks spend the winter|The storks spend the winter south of the Sahara.|In the cold months the birds stay in tropical Africa.|They build nests on chimneys.|Frogs are their favourite food.|Villagers count them each April.
why is the factory hiring more workers|The factory is hiring more workers because orders for electric buses have tripled.|Strong demand for battery vehicles makes the plant recruit staff.|Its canteen has been painted green.|The river runs behind the halls.|Shifts begin at six.
how can the password be reset|The password can be reset with the link at the bottom of the login page.|Choose a new secret word by clicking below the sign in form.|The manual is in the blue folder.|Printers are on the third floor.|The help desk closes at five.
what killed the trees in the northern forest|The trees in the northern forest were killed by a beetle that bores under the bark.|An insect drilling through the wood destroyed the pines.|Foxes live among the rocks.|The soil is sandy there.|A railway crosses the valley.
who taught the princess to sail|The princess was taught to sail by a retired fisherman.|An old man of the sea showed the royal daughter how to handle a boat.|Her dog slept on the deck.|The harbour froze in January.|She later wrote two books.
why are the street lamps red|The street lamps are red because bats avoid white light.|Crimson lighting protects nocturnal flying mammals.|The houses are built of wood.|A market is held on Thursdays.|The canal is two metres deep.
when did the volcano last erupt|The volcano last erupted in the spring of 1944.|Lava most recently poured from the crater near the end of the war.|Vines grow on its slopes.|The trail starts at a chapel.|Scientists watch it with cameras.
how did the village get its name|The village got its name from a saint who healed lame horses.|It is called after a holy man known for curing animals.|It has four hundred inhabitants.|The inn serves trout.|A mill stands by the brook.
what does the new law say about plastic bags|The new law says that shops must not give away plastic bags.|Retailers may no longer hand out polythene carriers for nothing.|Parliament debated for two days.|Paper prices have risen.|Farmers asked for more time.
where was the lost dog found|The lost dog was found in a barn five miles from its home.|The missing pet turned up among hay outside the town.|Its collar was blue.|Posters hung on every corner.|The family has three children.
""".strip()  # noqa: E501

KINDS = ("plain", "duplicated", "paraphrased")


def documents(topics=None):
    """(kind, question, sentences, told) of each topic (None: of all) in each kind; the order of sentences is random.

    `told`: where the answer stands, and where it is repeated or paraphrased; in plain documents another sentence.
    """
    lines = TOPICS.splitlines()[:topics]
    others = [line.split("|")[3:] for line in TOPICS.splitlines()]
    found = []
    for at, line in enumerate(lines):
        question, answer, paraphrase, *rest = line.split("|")
        for kind in KINDS:
            draw = random.Random(f"{at} {kind}")
            again = {"plain": draw.choice(others[at - 1]), "duplicated": answer, "paraphrased": paraphrase}[kind]
            sentences = [answer, again, *rest]
            order = draw.sample(range(len(sentences)), len(sentences))
            told = order.index(0), order.index(1)
            found.append((kind, question, [sentences[k] for k in order], told))
    return found
