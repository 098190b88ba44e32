//go:build tools

// Package networkpolicies pins kube-network-policies, which `make bench-policy` measures beside Braid. It is never
// linked into Braid.
package networkpolicies

import _ "sigs.k8s.io/kube-network-policies/cmd/kube-network-policies/standard"
