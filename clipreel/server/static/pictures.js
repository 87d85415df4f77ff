// Images as queries: dropped, pasted or chosen, then uploaded.

import { api } from "./api.js";
import { at, toast } from "./dom.js";

/** Calls `got({id, address, name})` for every image that the server took. */
export function takePictures(got) {
  const drop = at("drop");
  const file = at("file");
  let depth = 0;

  const take = async (files) => {
    const images = [...files].filter((f) => f.type.startsWith("image/"));
    if (!images.length) return toast("Only images can be dropped here. Videos are added with clipreel index.", null, true);
    for (const image of images) {
      try {
        const { id } = await api.upload(image);
        got({ id, address: URL.createObjectURL(image), name: image.name });
      } catch (error) {
        toast(`${image.name}: ${error.message}`, null, true);
      }
    }
  };
  const holdsFiles = (e) => [...(e.dataTransfer?.types ?? [])].includes("Files");

  addEventListener("dragenter", (e) => {
    if (!holdsFiles(e)) return;
    depth += 1;
    drop.hidden = false;
  });
  addEventListener("dragleave", (e) => {
    if (!holdsFiles(e)) return;
    depth -= 1;
    drop.hidden = depth <= 0;
  });
  addEventListener("dragover", (e) => holdsFiles(e) && e.preventDefault());
  addEventListener("drop", (e) => {
    depth = 0;
    drop.hidden = true;
    if (!holdsFiles(e)) return;
    e.preventDefault();
    take(e.dataTransfer.files);
  });
  addEventListener("paste", (e) => {
    const files = [...(e.clipboardData?.files ?? [])];
    if (!files.length) return;
    e.preventDefault();
    take(files);
  });
  at("pick").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    take(file.files);
    file.value = "";
  });
}
