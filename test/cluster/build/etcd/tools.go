//go:build tools

// Package etcd pins the store of the tests' cluster. It is never linked into Braid.
package etcd

import _ "go.etcd.io/etcd/server/v3"
