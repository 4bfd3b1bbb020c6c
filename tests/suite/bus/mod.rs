//! Every bus's contract: who is told what, in which order, and what a loss looks like.

mod contract;
