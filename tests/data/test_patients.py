import pytest

from cxr_ray.data.patients import patient_of


@pytest.mark.parametrize(
    ("name", "patient", "kind"),
    [
        ("person123_bacteria_456.jpeg", "bacteria-123", "bacteria"),
        ("person123_virus_456.jpeg", "virus-123", "virus"),
        ("PERSON123_Virus_456.JPEG", "virus-123", "virus"),
        ("person124_virus_234_2.jpeg", "virus-124", "virus"),
        ("IM-0115-0001.jpeg", "IM-0115", "normal"),
        ("im-0523-0001-0002.JPG", "IM-0523", "normal"),
        ("NORMAL2-IM-1430-0001.jpeg", "NORMAL2-IM-1430", "normal"),
        ("sub/folder/IM-0115-0001 (1).jpeg", "IM-0115", "normal"),
        ("phantom-000012.pgm", "phantom-000012", "unknown"),
        ("person_bacteria.png", "person_bacteria", "unknown"),
        ("00000013_005.png", "00000013_005", "unknown"),
    ],
)
def test_a_file_name_gives_the_patient_and_the_kind(name, patient, kind):
    assert patient_of(name) == (patient, kind)
