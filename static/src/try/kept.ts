// Audio that was sent but is not yet stored by the server, per channel. Pure.
//
// Invariants: pieces are contiguous and in order; everything from the server's `safe` on is here, unless more than `most` samples
// piled up, in which case the oldest are dropped and counted: memory stays bounded.

interface Piece {
  position: number;
  samples: Int16Array;
}

export class Kept {
  private pieces: Piece[] = [];
  private next = 0;
  /** Samples given up because too many were waiting. */
  dropped = 0;

  constructor(private readonly most: number) {}

  /** The position of the next sample. */
  get end(): number {
    return this.next;
  }

  /** How many samples wait for the server to store them. */
  get waiting(): number {
    return this.next - (this.pieces[0]?.position ?? this.next);
  }

  /** Takes a piece and says where it stands. */
  add(samples: Int16Array): number {
    const position = this.next;
    this.pieces.push({ position, samples });
    this.next += samples.length;
    while (this.waiting > this.most) {
      const oldest = this.pieces.shift();
      this.dropped += oldest?.samples.length ?? 0;
    }
    return position;
  }

  /** The server has stored everything before `position`. */
  safe(position: number): void {
    while (this.pieces[0] && this.pieces[0].position + this.pieces[0].samples.length <= position) this.pieces.shift();
  }

  /** What to send again when the server goes on at `position`; the first piece may begin earlier, the server trims it. */
  from(position: number): readonly Piece[] {
    return this.pieces.filter((piece) => piece.position + piece.samples.length > position);
  }
}
