package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/netagent/install"
)

// pluginDir is where container runtimes look for CNI plugins unless they are told otherwise.
const pluginDir = "/opt/cni/bin"

func newInstallCNI() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use:   "install-cni",
		Short: "copy the CNI plugin to where the container runtime looks for it",
		Long: `Copies the executable ` + install.Name + ` into the folder of CNI plugins. It is replaced as a whole: a runtime
never starts half a file, also after a power cut, and a plugin that is running is not disturbed. The
configuration that makes a runtime use it is written by 'netagent run', once the node is ready for pods.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if from == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the CNI plugin beside netagent: %w: give it with --from", err)
				}
				from = filepath.Join(filepath.Dir(self), install.Name)
			}
			changed, err := install.Plugin(from, to)
			switch {
			case err != nil:
				return err
			case changed:
				fmt.Fprintln(c.OutOrStdout(), "installed", filepath.Join(to, install.Name))
			default:
				fmt.Fprintln(c.OutOrStdout(), filepath.Join(to, install.Name), "is this version already")
			}
			return nil
		},
	}
	c.Flags().StringVar(&from, "from", "", "the plugin's executable (default: "+install.Name+" beside netagent)")
	c.Flags().StringVar(&to, "to", pluginDir, "folder of CNI plugins")
	return c
}

func newUninstallCNI() *cobra.Command {
	var from string
	var yes, stay bool
	c := &cobra.Command{
		Use:   "uninstall-cni",
		Short: "remove the CNI plugin from where the container runtime looks for it",
		Long: `Removes the executable ` + install.Name + ` from the folder of CNI plugins. Pods that Braid connected cannot be taken
down without it: remove them, and then what 'netagent cleanup' removes, first.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes {
				return errUsage{errors.New("without the plugin, pods of this node cannot be taken down: say --yes when that is meant")}
			}
			removed, err := install.Remove(from)
			if err != nil {
				return err
			}
			if removed {
				fmt.Fprintln(c.OutOrStdout(), "removed", filepath.Join(from, install.Name))
			} else {
				fmt.Fprintln(c.OutOrStdout(), "no", install.Name, "in", from)
			}
			if stay {
				fmt.Fprintln(c.OutOrStdout(), "done with this node: waiting to be stopped")
				<-c.Context().Done()
			}
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().StringVar(&from, "from", pluginDir, "folder of CNI plugins")
	c.Flags().BoolVar(&stay, "stay", false, "stay until stopped, so that a DaemonSet can count the nodes that are done")
	return c
}
