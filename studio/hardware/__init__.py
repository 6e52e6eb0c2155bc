"""What this machine is and does: probes, locks, durable files, liveness. Imports core only."""
