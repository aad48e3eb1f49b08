"""Real folders with real files, as kernels of different boards have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.board.sensors import Battery, Reading, Sensors


def put(root: Path, **files: str) -> None:
    """Files by path, with ``__`` for each slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def zone(root: Path, number: int, kind: str, temp: str) -> None:
    put(
        root,
        **{f"class__thermal__thermal_zone{number}__type": kind, f"class__thermal__thermal_zone{number}__temp": temp},
    )


def supply(root: Path, name: str, **files: str) -> None:
    put(root, **{f"class__power_supply__{name}__{key}": value for key, value in files.items()})


def test_a_board_without_sensors_has_no_reading(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read() == Reading(temperature_c=None, throttling=None, battery=None)
    assert Sensors(tmp_path / "absent").read().temperature_c is None


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "51250")
    zone(tmp_path, 1, "gpu-thermal", "63000")
    assert Sensors(tmp_path).read().temperature_c == 63.0


@pytest.mark.parametrize(
    ("kind", "temp"),
    [
        ("PMIC-Die", "100000"),
        ("INT3400 Thermal", "20000"),
        ("cpu", "-274000"),
        ("cpu", "9999999"),
        ("cpu", "x"),
        ("cpu", ""),
    ],
    ids=["always-100", "always-20", "off", "broken", "no-number", "empty"],
)
def test_a_zone_that_measures_nothing_does_not_count(tmp_path: Path, kind: str, temp: str) -> None:
    zone(tmp_path, 0, kind, temp)
    assert Sensors(tmp_path).read().temperature_c is None
    zone(tmp_path, 1, "CPU-therm", "40000")
    assert Sensors(tmp_path).read().temperature_c == 40.0


def test_a_zone_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "class" / "thermal" / "thermal_zone0" / "temp").mkdir(parents=True)
    zone(tmp_path, 1, "cpu", "40000")
    assert Sensors(tmp_path).read().temperature_c == 40.0


def test_without_zones_the_processor_s_own_chip_counts(tmp_path: Path) -> None:
    put(tmp_path, class__hwmon__hwmon0__name="nvme", class__hwmon__hwmon0__temp1_input="90000")
    put(tmp_path, class__hwmon__hwmon1__name="k10temp", class__hwmon__hwmon1__temp1_input="55500")
    assert Sensors(tmp_path).read().temperature_c == 55.5
    zone(tmp_path, 0, "acpitz", "30000")
    assert Sensors(tmp_path).read().temperature_c == 30.0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("0", ""),
        ("50000", ""),  # it was, since the last reboot; it is not now
        ("1", "under-voltage"),
        ("50005", "under-voltage, throttled"),
        ("e0008", "soft temperature limit"),
        ("0x2", "frequency capped"),
    ],
)
@pytest.mark.parametrize("folder", ["soc", "soc@107c000000"])
def test_a_raspberry_pi_says_what_is_so_now(tmp_path: Path, flags: str, expected: str, folder: str) -> None:
    put(tmp_path, **{f"devices__platform__{folder}__{folder}:firmware__get_throttled": flags})
    assert Sensors(tmp_path).read().throttling == expected


def test_a_cooling_device_that_slows_cores_down_counts_and_a_fan_does_not(tmp_path: Path) -> None:
    put(tmp_path, class__thermal__cooling_device0__type="pwm-fan", class__thermal__cooling_device0__cur_state="3")
    assert Sensors(tmp_path).read().throttling is None
    put(tmp_path, class__thermal__cooling_device1__type="cpufreq-cpu0", class__thermal__cooling_device1__cur_state="0")
    assert Sensors(tmp_path).read().throttling == ""
    put(tmp_path, class__thermal__cooling_device1__cur_state="2")
    assert Sensors(tmp_path).read().throttling == "cpufreq-cpu0 at 2"


def test_a_counter_that_grows_is_throttling_and_one_that_stands_is_not(tmp_path: Path) -> None:
    counter = "devices__system__cpu__cpu0__thermal_throttle__core_throttle_count"
    put(tmp_path, **{counter: "7"})
    sensors = Sensors(tmp_path)
    assert sensors.read().throttling == ""
    assert sensors.read().throttling == ""
    put(tmp_path, **{counter: "9", counter.replace("cpu0", "cpu1"): "5"})
    assert sensors.read().throttling == "processor throttled"
    assert sensors.read().throttling == ""


@pytest.mark.parametrize(
    ("status", "online", "expected"),
    [
        ("Discharging", "0", Battery(percent=41.0, is_discharging=True, is_full=False)),
        ("Charging", "1", Battery(percent=41.0, is_discharging=False, is_full=False)),
        ("Not charging", "1", Battery(percent=41.0, is_discharging=False, is_full=True)),
        ("Unknown", "0", Battery(percent=41.0, is_discharging=True, is_full=False)),
    ],
)
def test_a_battery_beside_a_supply(tmp_path: Path, status: str, online: str, expected: Battery) -> None:
    supply(tmp_path, "BAT0", type="Battery", capacity="41", status=status)
    supply(tmp_path, "AC", type="Mains", online=online)
    assert Sensors(tmp_path).read().battery == expected


@pytest.mark.parametrize(("status", "is_discharging"), [("Discharging", True), ("Charging", False), ("Full", False)])
def test_a_battery_alone_says_itself_whether_it_is_used(tmp_path: Path, status: str, is_discharging: bool) -> None:  # noqa: FBT001
    supply(tmp_path, "BAT1", type="Battery", capacity="60", status=status)
    battery = Sensors(tmp_path).read().battery
    assert battery is not None
    assert battery.is_discharging == is_discharging


def test_the_battery_of_a_mouse_is_not_the_board_s(tmp_path: Path) -> None:
    supply(tmp_path, "hidpp_battery_0", type="Battery", capacity="3", status="Discharging", scope="Device")
    supply(tmp_path, "AC", type="Mains", online="1")
    assert Sensors(tmp_path).read().battery is None


def test_a_battery_without_a_charge_is_none(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Unknown")
    assert Sensors(tmp_path).read().battery is None
