"""Every name of a field that the shop sends or reads: JSON, form, query and cookies.

They stand in this one module so that a test can rename all of them: nothing in Livefire may know one.
(`accounts.csv` and `mask.yaml` repeat the literal names of what they are about.)
"""

USER = "user"
PASSWORD = "password"
TOKEN = "token"
COOKIE = "shop_sid"
ERROR = "error"

PAGE = "page"
QUERY = "q"
PRODUCT = "product"
PRODUCTS = "products"
TITLE = "title"
PRICE = "price_cents"
TEXT = "text"
STOCK = "stock"
MORE = "more"

LINE = "line"
LINES = "lines"
QUANTITY = "quantity"
TOTAL = "total_cents"

ORDER = "order"
STATUS = "status"
NOTE = "note"
CARD = "card_number"
AMOUNT = "amount_cents"
RECEIPT = "receipt"
PLACED = "placed_at"
NEWS = "news"
