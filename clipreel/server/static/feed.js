// What the player is sent: a whole film, or while it is being remade for the browser, the film from a second on.

import { api } from "./api.js";
import { clock } from "./say.js";

const ASK_MS = 1000;

export class Feed {
  /** `say(message)` puts a line beside the picture, an empty one takes it away; `refused(message)` is the end of it. */
  constructor(video, say, refused) {
    this.video = video;
    this.say = say;
    this.refused = refused;
    this.id = null;
    this.#reset();
    video.addEventListener("loadedmetadata", () => this.#reach());
    video.addEventListener("canplay", () => this.#plays());
    video.addEventListener("error", () => this.id && this.#ask());
  }

  #reset() {
    Object.assign(this, { from: 0, whole: true, late: false, said: false, facts: null, target: null });
  }

  /** Have a film sent; whether the browser plays it as it is, `know` tells later. */
  open(id) {
    this.#reset();
    this.id = id;
    this.video.src = api.media(id);
  }

  /** What the server says of the film. Returns when every second of it can be had. */
  async know(facts) {
    this.facts = facts;
    const { id } = this;
    this.whole = facts.ready !== false;
    this.#reach();
    while (this.id === id && this.facts.ready === false) {
      await new Promise((done) => setTimeout(done, ASK_MS));
      const told = this.id === id ? await api.video(id) : null;
      if (this.id === id) this.facts = told;
    }
    if (this.id === id && this.late) this.#load(0);
  }

  close() {
    this.#reset();
    this.id = null;
    this.video.removeAttribute("src");
    this.video.load();
  }

  /** The second of the film that is shown: what is sent may begin at another than 0. */
  get second() {
    return this.from + this.video.currentTime;
  }

  /** Go to a second, now or as soon as the video can. */
  seek(s, play = false) {
    this.target = { s: Math.max(s, 0), play };
    this.#reach();
  }

  #reach() {
    if (!this.target) return;
    const { s, play } = this.target;
    if (!this.#holds(s)) return this.#load(s);
    if (this.video.readyState < 1) return;
    this.video.currentTime = Math.max(s - this.from, 0);
    if (play) this.video.play().catch(() => {});
    // until the facts are known, the video may be one that cannot be sought yet
    if (this.facts) this.target = null;
  }

  /** Whether what is sent has this second: a whole film has all, another one what came so far. */
  #holds(s) {
    if (this.whole) return true;
    const at = s - this.from;
    if (Math.abs(at) < 0.2) return true;
    const { buffered } = this.video;
    for (let i = 0; i < buffered.length; i += 1) if (buffered.start(i) <= at && at <= buffered.end(i)) return true;
    return false;
  }

  /** Have the film sent anew: whole where it is made, else from a second on. */
  #load(s) {
    this.whole = this.facts.ready !== false;
    this.late = false;
    this.from = this.whole ? 0 : Math.round(10 * Math.max(Math.min(s, this.facts.duration_s - 0.5), 0)) / 10;
    if (!this.whole) {
      this.target = { s: this.from, play: this.target?.play || !this.video.paused };
      this.#tell(`The browser does not play this file, so it is remade from ${clock(this.from)} on.`);
    }
    this.video.src = api.media(this.id, this.from);
  }

  /** After an error of the video: whether it will be there later, because the server only was at others. */
  waits() {
    if (this.whole || this.facts?.ready !== false) return false;
    this.target ??= { s: this.from, play: true };
    this.late = true;
    this.#tell(`The browser does not play this file, so it is being remade. It opens at ${clock(this.target.s)} when it is ready.`);
    return true;
  }

  /** A video does not tell why it failed, so the server is asked; that it is busy passes by itself. */
  async #ask() {
    const { src } = this.video;
    const why = await api.refusal(this.id, this.from);
    if (this.video.src === src && why && why.status !== 503) this.refused(why.message);
  }

  #tell(message) {
    this.said = Boolean(message);
    this.say(message);
  }

  #plays() {
    if (this.said) this.#tell("");
  }
}
