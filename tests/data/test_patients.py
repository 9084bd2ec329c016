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
        ("00000013_005.png", "00000013", "unknown"),
        ("images_001/images/00000013_005.png", "00000013", "unknown"),
        ("20200101_123.png", "20200101_123", "unknown"),
        ("PNEUMONIA_original_person500_bacteria_3.jpeg_a0b1c2d3.jpeg", "bacteria-500", "bacteria"),
        ("superperson12_virus_1.png", "superperson12_virus_1", "unknown"),
        ("aug_0_IM-0500-0001.jpeg", "IM-0500", "normal"),
        ("NORMAL2-IM-0501-0001-0002_jpeg.rf.0a1b2c3d4e.jpg", "NORMAL2-IM-0501", "normal"),
        ("NORMAL2-IM-0501-0001-0002 - Copy.jpg", "NORMAL2-IM-0501", "normal"),
        ("BACTERIA-1008087-0001.jpeg", "1008087", "bacteria"),
        ("VIRUS-1008087-0002.jpeg", "1008087", "virus"),
        ("NORMAL-1000507-0002.jpeg", "1000507", "normal"),
        ("train/patient00042/study1/view1_frontal.jpg", "00042", "unknown"),
        ("files/p10/p10000032/s50414267/02aa804e.jpg", "10000032", "unknown"),
        ("003d8fa0-6bf1-40ed-b54c-ac657f8495c5.dcm", "003d8fa0-6bf1-40ed-b54c-ac657f8495c5", "unknown"),
        ("CHNCXR_0001_0.png", "CHNCXR_0001", "unknown"),
    ],
)
def test_a_file_name_gives_the_patient_and_the_kind(name, patient, kind):
    assert patient_of(name)[:2] == (patient, kind)
