"""The built site in a browser: python docs/check.py build/docs/html, with playwright and Chromium.

Every page, light and dark, wide and at a phone's width, from the disk and without a network: no
error on the console, no request that fails or leaves the machine, no link or anchor to nowhere,
nothing wider than the screen, every picture loaded. Then the search. Screenshots with --pictures.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from playwright.sync_api import Page, sync_playwright

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.href)"
IDS = "[...document.querySelectorAll('[id]')].map(e => e.id)"
WIDER = "document.documentElement.scrollWidth - window.innerWidth"
# A loading=lazy picture is asked for when it is near.
BROKEN = """Promise.all([...document.images].map(async i => {
    i.loading = 'eager'; await i.decode().catch(() => {}); return i.naturalWidth ? '' : i.src;
}))"""


def looked_at(page: Page, file: Path, wrong: list[str]) -> tuple[list[str], set[str]]:
    """Links and anchors of a page; what is wrong with it is added."""
    page.set_viewport_size(DESK)
    page.goto(file.as_uri())
    links, ids = page.evaluate(LINKS), set(page.evaluate(IDS))
    wrong += [f"{file.name}: no picture {src}" for src in page.evaluate(BROKEN) if src]
    page.set_viewport_size(PHONE)
    if (wider := page.evaluate(WIDER)) > 0:
        wrong.append(f"{file.name}: {wider} pixels wider than a phone")
    return links, ids


def search(page: Page, root: Path, word: str) -> int:
    """How many results the offline search shows for a word."""
    page.goto((root / "search.html").as_uri() + f"?q={word}")
    page.wait_for_selector("#search-results li", timeout=10_000)
    return page.locator("#search-results li").count()


def report(page: Page, file: Path, wrong: list[str]) -> None:
    """The page of `deepl0 report`, used: sort by each column, hide a row and show it again."""
    page.goto(file.as_uri())
    first = page.locator("table").first
    heads, names = first.locator("thead tr").first.locator("th"), first.locator("tbody th")
    before = names.all_inner_texts()
    heads.nth(1).click()
    numbers = [
        float(t.split()[0]) for t in first.locator("tbody td:nth-child(2)").all_inner_texts() if t
    ]
    if numbers != sorted(numbers) or heads.nth(1).get_attribute("aria-sort") != "ascending":
        wrong.append(f"{file.name}: a click does not sort: {numbers}")
    heads.nth(1).press("Enter")
    heads.nth(1).click()
    if names.all_inner_texts() != before:
        wrong.append(f"{file.name}: a third click does not restore the order")
    names.first.click()
    if names.first.is_visible():
        wrong.append(f"{file.name}: a click on a name does not hide its row")
    page.locator("button:visible").first.click()
    if not names.first.is_visible():
        wrong.append(f"{file.name}: hidden rows do not come back")
    page.set_viewport_size(PHONE)
    if (wider := page.evaluate(WIDER)) > 0:
        wrong.append(f"{file.name}: {wider} pixels wider than a phone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--report", type=Path, help="also a page of deepl0 report")
    parser.add_argument("--pictures", type=Path, help="folder of screenshots")
    options = parser.parse_args()
    root = options.site.resolve()
    wrong: list[str] = []
    with sync_playwright() as p:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda m: m.type == "error" and wrong.append(f"{page.url}: {m.text}"))
        page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
        page.on("requestfailed", lambda r: wrong.append(f"{page.url}: request of {r.url} failed"))
        found = {
            f: looked_at(page, f, wrong)
            for f in sorted(root.rglob("*.html"))
            if "_modules" not in f.parts and "_static" not in f.parts
        }
        for file, (links, _) in found.items():
            for link in links:
                url, anchor = urldefrag(link)
                if urlparse(url).scheme != "file":
                    continue
                target = Path(unquote(urlparse(url).path))
                if not target.exists():
                    wrong.append(f"{file.name}: no {target}")
                elif anchor and target in found and unquote(anchor) not in found[target][1]:
                    wrong.append(f"{file.name}: no anchor {link}")
        if options.report:
            report(page, options.report.resolve(), wrong)
        results = search(page, root, "keep_top_m")
        if not results:
            wrong.append("the search finds nothing")
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for scheme in ("light", "dark"):
                for width, size in (("desk", DESK), ("phone", PHONE)):
                    page.emulate_media(color_scheme=scheme)
                    page.set_viewport_size(size)
                    for name in ("index", "concepts", "choose", "api/operators"):
                        page.goto((root / f"{name}.html").as_uri())
                        shot = f"{name.replace('/', '-')}-{scheme}-{width}.png"
                        page.screenshot(path=options.pictures / shot, full_page=width == "desk")
        browser.close()
    for line in dict.fromkeys(wrong):
        print(line, file=sys.stderr)
    print(f"{len(found)} pages, {results} results of a search: {len(set(wrong))} faults")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
