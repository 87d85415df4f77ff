// The texts that were searched for, which the server keeps: how many, what for, and having them forgotten.

import { api } from "./api.js";
import { h, toast } from "./dom.js";
import { capital, count } from "./say.js";

export class Kept {
  constructor() {
    this.line = h("p", { class: "hint" });
    this.forget = h("button", { type: "button", class: "button", id: "forget", onclick: () => this.#forget() }, "Forget them");
    this.section = h("section", { hidden: true }, h("h3", {}, "Kept searches"), this.line, this.forget);
  }

  async read() {
    try {
      this.#draw(await api.queries());
    } catch {
      this.section.hidden = true; // the search says that the server is away
    }
  }

  #draw({ total, remembers }) {
    this.section.hidden = !total && !remembers;
    const what = total ? `${count(total, "text")}, on the machine of the archive only.` : "None yet.";
    this.line.replaceChildren(what, " ", h("code", {}, "clipreel index --bank past"), " learns from them what a score means here.");
    this.forget.hidden = !total;
  }

  async #forget() {
    try {
      this.#draw(await api.forget());
      toast("Forgotten");
      this.section.closest("dialog").querySelector("h2").focus();
    } catch (error) {
      toast(capital(error.message), null, true);
    }
  }
}
