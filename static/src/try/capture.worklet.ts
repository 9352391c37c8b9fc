// Runs on the browser's audio thread: collects the microphone's samples into pieces of 20 ms and hands them over with their loudness.

declare const sampleRate: number;
declare function registerProcessor(name: string, processor: unknown): void;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}

class Capture extends AudioWorkletProcessor {
  private piece = new Float32Array(Math.round(sampleRate / 50));
  private filled = 0;

  process(inputs: Float32Array[][]): boolean {
    const samples = inputs[0]?.[0];
    if (!samples) return true;
    let taken = 0;
    while (taken < samples.length) {
      const part = samples.subarray(taken, taken + this.piece.length - this.filled);
      this.piece.set(part, this.filled);
      this.filled += part.length;
      taken += part.length;
      if (this.filled === this.piece.length) this.handOver();
    }
    return true;
  }

  private handOver(): void {
    const piece = this.piece;
    this.piece = new Float32Array(piece.length);
    this.filled = 0;
    this.port.postMessage(piece, [piece.buffer]);
  }
}

registerProcessor('capture', Capture);
