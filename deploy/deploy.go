// Package deploy holds what installs Braid on a cluster: a kustomize base, and the single file
// braid.yaml made of it.
package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

//go:generate go test . -run TestBundle -update

// kustomization is as much of kustomize's file as the base uses. What it does not use would need
// kustomize to be put together, so it is refused.
type kustomization struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Resources  []string `json:"resources"`
}

const header = `# Braid: names, services and pods for a Kubernetes cluster. docs/operations.md says how to install it.
# Made of the files in deploy/base by ` + "`go generate ./deploy`" + `: change them, not this one.
#
# Two settings depend on the cluster: the API server's address (ConfigMap braid-api-server) and the
# address of the DNS service (clusterIP of Service kube-dns).
`

// Bundle returns the objects of a kustomize base as one file, with the comments, in the order of its
// kustomization.yaml.
func Bundle(base string) ([]byte, error) {
	path := filepath.Join(base, "kustomization.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var k kustomization
	if err := yaml.UnmarshalStrict(data, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	out := bytes.NewBufferString(header)
	for _, name := range k.Resources {
		data, err := os.ReadFile(filepath.Join(base, name))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(out, "---\n%s\n", bytes.TrimSpace(data))
	}
	return out.Bytes(), nil
}
