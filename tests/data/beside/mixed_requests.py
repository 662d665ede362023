# Requests that meet several conditions and actions at once; the seed is fixed.
PATHS = """/delegated /delegated/again /delegated/again/x?a=b /delegated/copy?a=1 /delegated/copy?a=2 /delegatedly /elsewhere
/v1/books/emma?page=2 /v12/books/emma?page=x /v1/books/emma?page=2&page=x /v1/books/a/b?page=1 /v1/books/?page=1 /V1/books/emma?page=1
/catalog /CATALOG/x?y=z /Catalogue /shared /shared/x?y=1 /twice /twice/x?y /never /broken /broken/x /one /one?q=1 /one/ /one/?q=1
/one/two?q=1&q=2 /onetwo /onetwo?x=y /oneTwo /split /split/x /name /name/x /mine /mine/x /late /moved /moved?to=newer /moved?to=old&to=new
/moved/x?to=newer&a=b /call /call?x=y /plain /plain?x=%20 / /nothing""".split()
MIRRORED = ["/shared", "/twice", "/delegated/copy"]
METHODS = ["GET"] * 6 + ["POST", "PUT", "HEAD", "OPTIONS", "DELETE"]
HEADERS = [
    "x-there: a", "x-there:", "x-there: a\r\nx-there: b", "end-user: jason", "end-user: james", "end-user: bob", "x-long: vvvv", "x-long: wvv",
    "cookie: a=b", "x-removed: 1", "x-set: client", "x-added: client", "x-unmatched: yes", "x-unmatched: yes\r\nx-there: 1", "x-empty:", "x-empty: 1",
    "origin: https://good.example", "origin: https://very.good.example", "origin: https://bad.example",
    "content-type: application/grpc", "content-type: application/json", "accept: */*"]
HOSTS = ["web"] * 5 + ["web:80", "shop.example", "shop.example:80", "shop.Example"]
ANSWERS = ["200"] * 6 + ["404", "409", "500", "503", "recover", "reset", "chunked"]


def requests():
    chance = random.Random(20261128)
    for path in PATHS:
        yield request("GET", path)
        yield request("GET", path, "x-there: a")
    for path, extra in itertools.product(
            ["/delegated/again", "/delegated/copy?a=1", "/v1/books/emma?page=2", "/broken", "/one", "/plain", "/moved?to=newer", "/call"], HEADERS):
        yield request("GET", path, extra)
    for path, origin in itertools.product(["/shared", "/broken", "/delegated/copy?a=1"], ["good", "bad"]):
        for more in ("", "\r\nend-user: jason", "\r\nx-there: a"):
            lines = f"origin: https://{origin}.example\r\naccess-control-request-method: PUT{more}"
            yield request("OPTIONS", path, lines)
    for path, answer in itertools.product(
            ["/delegated/again", "/catalog", "/shared", "/twice", "/late", "/moved", "/split"], ["409", "500", "503", "recover", "reset", "slow"]):
        if answer != "slow" or path == "/late":
            yield request("GET", path, "x-there: a", answer=answer, name=f"{answer} to {path}")
            yield request("POST", path, "x-there: a", body=b"again", answer=answer, name=f"{answer} to POST {path}")
    for _ in range(250):
        method = chance.choice(METHODS)
        body = bytes(chance.choices(b"abcdef", k=chance.choice([0, 1, 5000]))) if method in ("POST", "PUT") else b""
        extra = "\r\n".join(chance.sample(HEADERS, chance.choice([0, 1, 2, 2, 3])))
        yield request(method, chance.choice(PATHS), extra, body, "1.1", chance.choice(HOSTS), chance.choice(ANSWERS))
