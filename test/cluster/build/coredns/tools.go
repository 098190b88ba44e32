//go:build tools

// Package coredns pins the stock CoreDNS, which Braid's stands beside in the conformance report. It is never
// linked into Braid.
package coredns

import _ "github.com/coredns/coredns"
