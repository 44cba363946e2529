"""What runs once per dataset: reading the official folder trees and converting their labels."""
