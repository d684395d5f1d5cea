// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of filters at XDP and tc.
